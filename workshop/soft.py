"""Which frozen model follows soft prompts: ``python -m workshop.soft --backbone smollm2``.

Trains the row "history and difference" of notebook 11 on some samples of the world of shared items,
and prints what it is worth against none and another user's, and what it took.
What came out of both candidates stands in the card of the one that was kept, the reviewer.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from chameleon_lib.difference import OURS, nll_of, train, write_all
from chameleon_lib.difference.world import WorldSettings
from chameleon_lib.kit.command_line import Parser, positive
from chameleon_lib.kit.profiles import get_profile
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies.s11_desk import BOTH, MODEL, NONE, WORLD_RECIPE, Asked, Desk
from workshop import run_script

STEP = 8  # samples


def measure(backbone: str, n: int, epochs: int, tested: int) -> dict[str, float]:
    """Nats per token and style hits of none, both and another user's, after training on ``n``."""
    asked = Asked(
        get_profile("demo"), backbone, WorldSettings(), "", WORLD_RECIPE, 0, 1, OURS,
        ArtifactStore().root,
    )  # fmt: skip
    desk = Desk(asked)
    model, test = desk.model(BOTH, 0), desk.test[:tested]
    recipe = replace(WORLD_RECIPE, epochs=epochs, batch=STEP)
    learned, start = desk.examples(BOTH, desk.material.samples.train[-n:]), time.process_time()
    log = train(model, learned, [], recipe)
    found: dict[str, float] = {"steps": len(log.losses), "seconds": time.process_time() - start}
    shown = {NONE: (NONE, test), BOTH: (BOTH, test), "another user's": (BOTH, desk.swapped)}
    for name, (row, some) in shown.items():
        examples = desk.examples(row, some[:tested])
        found[f"{name}, nats"] = float(np.mean(nll_of(model, examples, size=STEP)))
        said = write_all(model, examples, desk.material.new_tokens, size=STEP)
        hits = [desk.material.scores(s.review, text)["style hit"]
                for s, text in zip(test, said, strict=True)]  # fmt: skip
        found[f"{name}, style hit"] = float(np.mean(hits))
    return found


def main(argv: list[str] | None = None) -> int:
    """Command line; see ``--help``."""
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--backbone", default=MODEL)
    parser.add_argument("--samples", type=positive, default=960)
    parser.add_argument("--epochs", type=positive, default=3)
    parser.add_argument("--users", type=positive, default=40)
    args = parser.parse_args(argv)
    for name, value in measure(args.backbone, args.samples, args.epochs, args.users).items():
        print(f"{name}: {value:.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
