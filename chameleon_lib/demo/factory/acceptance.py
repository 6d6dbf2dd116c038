"""Acceptance of the embedded models, as a script.

    python -m chameleon_lib.demo.factory.acceptance [decoder:0 ...]

Every number is measured on test users of the embedded world with the kit's own prompts. A model is
accepted on these skills and on the positive control alone (the edit fitted on gold pairs of train
users), never on how well CHAMELEON's own directions do.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from chameleon_lib.backbones.embedder import load_embedder
from chameleon_lib.backbones.hf import HFBackbone
from chameleon_lib.backbones.load import load_backbone
from chameleon_lib.command_line import Parser
from chameleon_lib.core.backbone import Embedder
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import fit_by_preference, gold_contrasts
from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import (
    PAPER_TASKS,
    Role,
    User,
    answer_prompt,
    get_task,
    is_valid_answer,
)
from chameleon_lib.data.metrics import per_sample_scores
from chameleon_lib.demo import FAMILIES, SEEDS, checkpoint
from chameleon_lib.demo.factory import run_script
from chameleon_lib.demo.factory.cards import HERE, write_cards
from chameleon_lib.demo.world import NEUTRAL_INSIGHT, build_world, habits_followed
from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import replace_text
from chameleon_lib.kit.progress import tell
from chameleon_lib.kit.stats import Estimate
from chameleon_lib.kit.stats import bootstrap_mean as paired_bootstrap

TABLE = HERE / "acceptance.csv"
LIMIT = 48  # new tokens: twice what the longest planted answer or insight needs
DRAWS = 3
GROUP = 100
_SCORE = {"LaMP_2": "accuracy", "LaMP_3": "abs_error", "LaMP_7": "rougeL"}


@dataclass(frozen=True)
class Row:
    """One measured number with its goal; ``passed`` is None where only a value is stated."""

    model: str
    task: str
    skill: str
    estimate: Estimate
    goal: str
    passed: bool | None


def _rate(hits: Sequence[bool]) -> Estimate:
    return paired_bootstrap(np.array(hits, dtype=float))


def measure(backbone: HFBackbone, embedder: Embedder, task: str) -> list[Row]:
    """All acceptance rows of one model on one task."""
    world = build_world(task)
    method = Chameleon(
        backbone,
        embedder,
        EditSettings(decode_insight_tokens=LIMIT, decode_max_new_tokens=LIMIT),
    )
    test = method.prepare(world.users["test"]).users
    truth = [world.truth[user.user.id] for user in test]
    personal = [answer for planted in truth for answer in planted.personal]
    generic = [answer for planted in truth for answer in planted.generic]
    golds = [str(query.gold) for user in test for query in user.user.queries]
    rows: list[Row] = []

    def add(skill: str, estimate: Estimate, goal: str, passed: bool | None) -> None:
        rows.append(Row(backbone.name, task.replace("_", "-"), skill, estimate, goal, passed))

    named = [user.insight_p == planted.insight for user, planted in zip(test, truth, strict=True)]
    found = _rate(named)
    add("insight names the planted taste", found, ">= 0.90", found.value >= 0.9)
    neutral_named = _rate([user.insight_n == NEUTRAL_INSIGHT[task] for user in test])
    add("neutral insight is impersonal", neutral_named, ">= 0.90", neutral_named.value >= 0.9)

    ceiling = per_sample_scores(task, golds, personal)[_SCORE[task]]
    asked = {
        "planted": _prompts(task, test, "P", [planted.insight for planted in truth]),
        "own": _prompts(task, test, "P", [user.insight_p for user in test]),
        "neutral": _prompts(task, test, "N", [user.insight_n for user in test]),
        "plain": _prompts(task, test, "P", [None] * len(test)),
    }
    said = {name: backbone.generate(p, max_new_tokens=LIMIT) for name, p in asked.items()}
    # Writing the insight and following it are two skills with a goal each. Both at once, as
    # CHAMELEON uses them, is stated without one: there each wrong insight would count twice.
    found = _rate([a == b for a, b in zip(said["planted"], personal, strict=True)])
    add("personalised prompt is followed", found, ">= 0.95", found.value >= 0.95)
    found = _rate([a == b for a, b in zip(said["own"], personal, strict=True)])
    add("the same with the insight it wrote itself", found, "", None)
    found = _rate([a == b for a, b in zip(said["neutral"], generic, strict=True)])
    add("neutral prompt gives the generic answer", found, ">= 0.95", found.value >= 0.95)
    valid = _rate([is_valid_answer(task, text) for texts in said.values() for text in texts])
    add("valid answers (all prompts)", valid, ">= 0.98", valid.value >= 0.98)

    plain = backbone.prepare(asked["plain"])
    with torch.no_grad():
        margins = (backbone.score(plain, personal) - backbone.score(plain, generic)).numpy()
    differ = np.array([p != g for p, g in zip(personal, generic, strict=True)])
    margin = paired_bootstrap(margins[differ])
    # A tweet differs in up to ten tokens, each with an opinion of its own: only labels have a goal.
    goal = "" if task == "LaMP_7" else "within 0.7"
    add("plain-prompt margin (nats)", margin, goal, abs(margin.value) <= 0.7 if goal else None)

    edits = gold_edits(method, world.users["train"], task)
    edited = [backbone.generate_prepared(plain, max_new_tokens=LIMIT, edit=edit) for edit in edits]
    score = _SCORE[task]
    base = per_sample_scores(task, golds, said["plain"])[score]
    after = np.stack([per_sample_scores(task, golds, texts)[score] for texts in edited])
    add(f"ceiling: planted answer ({score})", paired_bootstrap(ceiling), "", None)
    add(f"plain prompt, no edit ({score})", paired_bootstrap(base), "", None)
    change = paired_bootstrap(after, base)
    goals = {"LaMP_2": "> +0.15", "LaMP_3": "< 0", "LaMP_7": "> 0"}
    passed = {
        "LaMP_2": change.value >= 0.15,
        "LaMP_3": change.high < 0,
        "LaMP_7": change.low > 0,
    }[task]
    add(f"positive control ({score} change)", change, goals[task], passed)
    if task == "LaMP_7":
        tastes = [planted.taste for planted in truth for _ in planted.personal]
        style = np.stack([_habits(texts, tastes) for texts in edited])
        change = paired_bootstrap(style, _habits(said["plain"], tastes))
        add("positive control (writing habits change)", change, "> 0", change.low > 0)
    return rows


def _habits(texts: Sequence[str], tastes: Sequence[object]) -> np.ndarray:
    return np.array(
        [habits_followed(text, taste) for text, taste in zip(texts, tastes, strict=True)]  # type: ignore[arg-type]
    )


def _prompts(
    task: str, users: Sequence[PreparedUser], role: Role, insights: Sequence[str | None]
) -> list[str]:
    return [
        answer_prompt(task, user.items, query.text, role=role, insight=insight)
        for user, insight in zip(users, insights, strict=True)
        for query in user.user.queries
    ]


def gold_edits(method: Chameleon, train: Sequence[User], task: str) -> list[Edit]:
    """The positive control: the edit fitted on gold pairs of train users, one per draw."""
    prepared = method.prepare(train).users
    backbone, edits = method.backbone, []
    for draw in range(DRAWS):
        order = torch.randperm(len(prepared), generator=torch.Generator().manual_seed(draw))
        group = [prepared[index] for index in order[:GROUP].tolist()]
        pairs = method.pairs(group)
        contrasts = gold_contrasts(task, group, pairs, method.settings)
        layers = range(backbone.n_layers)
        tell(f"{backbone.name} {task}: positive control, draw {draw + 1} of {DRAWS}")
        fit = fit_by_preference(backbone, contrasts, tuple(layers), method.settings, seed=draw)
        edits.append(fit.edit)
    return edits


def table_text(rows: Sequence[Row]) -> str:
    """The rows as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "task", "skill", "value", "ci_low", "ci_high", "n", "seeds", "goal",
                     "passed"])  # fmt: skip
    for row in rows:
        e = row.estimate
        numbers = [f"{x:.4f}" for x in (e.value, e.low, e.high)]
        passed = "" if row.passed is None else str(row.passed)
        writer.writerow([row.model, row.task, row.skill, *numbers, e.n, e.seeds, row.goal, passed])
    return out.getvalue()


def _print(row: Row) -> None:
    verdict = {None: "", True: "ok", False: "MISSED"}[row.passed]
    print(
        f"{row.model:16s} {row.task:7s} {row.skill:48s} {row.estimate!s:28s} "
        f"n={row.estimate.n:<4d} seeds={row.estimate.seeds} {row.goal:>11s} {verdict}",
        flush=True,
    )


def _folder_of(model: str) -> Path:
    family, colon, seed = model.partition(":")
    if family not in FAMILIES or not colon or not seed.isdigit():
        raise UserError(f"'{model}' is no embedded model; name one such as {FAMILIES[0]}:0.")
    return checkpoint(family, seed)


def main(argv: list[str] | None = None) -> int:
    """Print the table; exit code 1 if a goal is missed."""
    names = [(family, seed) for family in FAMILIES for seed in SEEDS]
    every = [f"{f}:{s}" for f, s in names if (HERE / f"{f}-{s}" / "config.json").is_file()]
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "models", nargs="*", default=every, help="such as decoder:0; default: all that are here"
    )
    parser.add_argument("--folder", type=Path, help="a checkpoint elsewhere, instead of models")
    parser.add_argument("--tasks", default=",".join(PAPER_TASKS), help="default: all three")
    parser.add_argument("--save", action="store_true", help="write the package's acceptance.csv")
    args = parser.parse_args(argv)
    tasks = [get_task(task).name for task in args.tasks.split(",")]
    if args.folder:
        folders = {args.folder.name: args.folder}
    else:
        folders = {model: _folder_of(model) for model in args.models}
    # Read before the embedder, which takes seconds: a wrong folder is told at once.
    backbones = [load_backbone(f, name=m, dtype="float32") for m, f in folders.items()]
    embedder = load_embedder(offline=True)
    rows: list[Row] = []
    for backbone in backbones:
        for task in tasks:
            for row in measure(backbone, embedder, task):
                _print(row)
                rows.append(row)
    if args.save:
        replace_text(TABLE, table_text(rows))
        write_cards()
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
