"""Acceptance of the embedded models, as a script.

    python -m workshop.acceptance [decoder:0 ...]

Every number is measured on test users of the embedded world with the kit's own prompts. A model is
accepted on these skills and on the positive control alone (the edit fitted on gold pairs of train
users), never on how well CHAMELEON's own directions do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from chameleon_lib.backbones.embedder import load_embedder
from chameleon_lib.backbones.hf import HFBackbone
from chameleon_lib.backbones.load import load_backbone
from chameleon_lib.core.backbone import Embedder
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.edit import Edit
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
from chameleon_lib.demo.world import NEUTRAL_INSIGHT, Taste, build_world, habits_followed
from chameleon_lib.errors import UserError
from chameleon_lib.kit.command_line import Parser
from chameleon_lib.kit.paths import replace_text
from chameleon_lib.kit.stats import Estimate, bootstrap_mean
from workshop import run_script
from workshop.cards import COLUMNS, HERE, write_cards

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

    def rate(skill: str, hits: Sequence[bool], at_least: float | None) -> None:
        found = bootstrap_mean(np.array(hits, dtype=float))
        goal = "" if at_least is None else f">= {at_least:.2f}"
        add(skill, found, goal, None if at_least is None else found.value >= at_least)

    named = [user.insight_p == planted.insight for user, planted in zip(test, truth, strict=True)]
    rate("insight names the planted taste", named, 0.9)
    impersonal = [user.insight_n == NEUTRAL_INSIGHT[task] for user in test]
    rate("neutral insight is impersonal", impersonal, 0.9)

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
    for skill, name, wanted, at_least in (
        ("personalised prompt is followed", "planted", personal, 0.95),
        ("the same with the insight it wrote itself", "own", personal, None),
        ("neutral prompt gives the generic answer", "neutral", generic, 0.95),
    ):
        rate(skill, [a == b for a, b in zip(said[name], wanted, strict=True)], at_least)
    valid = [is_valid_answer(task, text) for texts in said.values() for text in texts]
    rate("valid answers (all prompts)", valid, 0.98)

    plain = backbone.prepare(asked["plain"])
    with torch.no_grad():
        margins = (backbone.score(plain, personal) - backbone.score(plain, generic)).numpy()
    differ = np.array([p != g for p, g in zip(personal, generic, strict=True)])
    margin = bootstrap_mean(margins[differ])
    # A tweet differs in up to ten tokens, each with an opinion of its own: only labels have a goal.
    goal = "" if task == "LaMP_7" else "within 0.7"
    add("plain-prompt margin (nats)", margin, goal, abs(margin.value) <= 0.7 if goal else None)

    edits = gold_edits(method, world.users["train"])
    edited = [backbone.generate_prepared(plain, max_new_tokens=LIMIT, edit=edit) for edit in edits]
    score = _SCORE[task]
    base = per_sample_scores(task, golds, said["plain"])[score]
    after = np.stack([per_sample_scores(task, golds, texts)[score] for texts in edited])
    add(f"ceiling: planted answer ({score})", bootstrap_mean(ceiling), "", None)
    add(f"plain prompt, no edit ({score})", bootstrap_mean(base), "", None)
    change = bootstrap_mean(after, base)
    goal, passed = {
        "LaMP_2": ("> +0.15", change.value >= 0.15),
        "LaMP_3": ("< 0", change.high < 0),
        "LaMP_7": ("> 0", change.low > 0),
    }[task]
    add(f"positive control ({score} change)", change, goal, passed)
    if task == "LaMP_7":
        tastes = [planted.taste for planted in truth for _ in planted.personal]
        style = np.stack([_habits(texts, tastes) for texts in edited])
        change = bootstrap_mean(style, _habits(said["plain"], tastes))
        add("positive control (writing habits change)", change, "> 0", change.low > 0)
    return rows


def _habits(texts: Sequence[str], tastes: Sequence[Taste]) -> np.ndarray:
    return np.array(list(map(habits_followed, texts, tastes)))


def _prompts(
    task: str, users: Sequence[PreparedUser], role: Role, insights: Sequence[str | None]
) -> list[str]:
    return [
        answer_prompt(task, user.items, query.text, role=role, insight=insight)
        for user, insight in zip(users, insights, strict=True)
        for query in user.user.queries
    ]


def gold_edits(method: Chameleon, train: Sequence[User]) -> list[Edit]:
    """The positive control: the edit fitted on gold pairs of train users, one per draw."""
    prepared, edits = method.prepare(train).users, []
    for draw in range(DRAWS):
        order = torch.randperm(len(prepared), generator=torch.Generator().manual_seed(draw))
        group = [prepared[index] for index in order[:GROUP].tolist()]
        edits.append(method.edits(method.pairs(group), ["fitted_gold"], draw, group)["fitted_gold"])
    return edits


def table_text(rows: Sequence[Row]) -> str:
    """The rows as CSV."""
    values = [
        (row.model, row.task, row.skill, row.estimate.value, row.estimate.low, row.estimate.high,
         row.estimate.n, row.estimate.seeds, row.goal, row.passed)
        for row in rows
    ]  # fmt: skip
    return str(pd.DataFrame(values, columns=COLUMNS).to_csv(index=False, float_format="%.4f"))


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
