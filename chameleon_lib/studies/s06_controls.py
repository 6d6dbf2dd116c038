"""The controls that Table 1's own arms give: insight × edit, control directions, agreement.

Only counting and resampling of the result frame of Table 1; agreement among users alone asks the
stages for directions once more.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from chameleon_lib.core.directions import find_directions
from chameleon_lib.core.pairs import PreferencePair, keep_different
from chameleon_lib.core.task import get_task
from chameleon_lib.kit.figures import FigureOutput
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import Estimate
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.kit.tables import span
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.studies.arms import groups_of
from chameleon_lib.studies.data import without_gold
from chameleon_lib.studies.frame import (
    Claim,
    Row,
    better,
    columns_of,
    contrast,
    counts_last,
    difference,
    drawn,
    forest,
    judge,
    methods_in,
    pick,
    places,
    tabulate,
)
from chameleon_lib.studies.methods import FITTED, PAPER, controls_of, method_of
from chameleon_lib.studies.run import Cell, Run, split_of
from chameleon_lib.studies.s03_ladder import chance
from chameleon_lib.studies.study import Study

EDITS = (PAPER, FITTED)
ALONE, ON_TOP, IN_PLACE = (
    "edit alone (C5 - C3)",
    "edit on top of the insight (C6 - C4)",
    "edit in place of the insight (C5 - C4)",
)


def factorial(edit: str) -> dict[str, dict[str, float]]:
    """Effects of the 2 × 2 of insight and edit (C3-C6) as weights of its four arms."""
    neither, insight, both = "instruct", "insight", f"{edit}+insight"
    return {
        "insight alone (C4 - C3)": {insight: 1, neither: -1},
        ALONE: {edit: 1, neither: -1},
        ON_TOP: {both: 1, insight: -1},
        IN_PLACE: {edit: 1, insight: -1},
        "main effect of the insight": {insight: 0.5, neither: -0.5, both: 0.5, edit: -0.5},
        "main effect of the edit": {edit: 0.5, neither: -0.5, both: 0.5, insight: -0.5},
        "interaction": {both: 1, edit: -1, insight: -1, neither: 1},
    }


def factorial_effect(part: pd.DataFrame, edit: str, effect: str, metric: str) -> Estimate:
    """One effect of the 2 × 2 on the rows of one task and model."""
    weights = factorial(edit)[effect]
    return contrast([(w, pick(part, method=name)) for name, w in weights.items()], metric)


def two_by_two(frame: pd.DataFrame) -> pd.DataFrame:
    """Insight × edit for both edits, every task and model."""

    def rows(part: pd.DataFrame) -> Iterator[Row]:
        for edit in EDITS:
            for effect in factorial(edit):
                shown = {"edit": method_of(edit).title, "effect": effect}
                yield shown, partial(factorial_effect, part, edit, effect)

    return counts_last(tabulate(frame, rows, "change"))


def against_controls(frame: pd.DataFrame) -> pd.DataFrame:
    """Both edits minus each of their control directions."""

    def rows(part: pd.DataFrame) -> Iterator[Row]:
        there = {method.id for method in methods_in(part)}
        for edit in EDITS:
            for control in (name for name in controls_of(edit) if name in there):
                shown = {"edit": method_of(edit).title, "control": _name(control)}
                yield shown, partial(difference, part, edit, control)

    return counts_last(tabulate(frame, rows, "change"))


def _name(control: str) -> str:
    return method_of(control).title.removeprefix("control: ")


def verdicts(run: Run, notebook: str) -> list[Verdict]:
    """The kit's own claims about both edits, per task and model of Table 1."""
    claims = []
    for (task, model), part in places(run.frame, "task", "model"):
        metric, there = get_task(task).metrics[0], {method.id for method in methods_in(part)}
        for edit in EDITS:
            alone, on_top = (factorial_effect(part, edit, e, metric) for e in (ALONE, ON_TOP))
            common = [c for c in controls_of(edit, "claim", "personal") if c in there]
            # A gain on top of the insight is the next claim, and no control of this one.
            margins = {name: difference(part, edit, name, metric) for name in common}
            title, split = method_of(edit).title, split_of(run, task)
            claims += [
                Claim(
                    task,
                    model,
                    f"{title} acts through a personalised direction",
                    alone,
                    margins,
                    split=split,
                    note="" if common else "no control was run",
                ),
                Claim(
                    task,
                    model,
                    f"{title} helps beyond the insight in the prompt",
                    on_top,
                    {"the edit without it": alone},
                    split=split,
                    note="must also gain without the insight",
                ),
            ]
    csv = "tables/controls_a_insight_edit.csv"
    return judge(claims, section="4.2", notebook=notebook, csv=csv)


def factorial_figure(table: pd.DataFrame, task: str, publish: Publisher) -> FigureOutput:
    """Forest plot of the 2 × 2, a panel per model, a marker per edit."""
    part, metric = table[table["task"] == task.replace("_", "-")], get_task(task).metrics[0]
    data = drawn(part, "change", "effect", "edit", "model")
    return forest(
        publish,
        data,
        f"06_insight_edit_{task}",
        made_by=factorial_figure,
        title=f"{task.replace('_', '-')}: insight and edit, alone and together",
        caption=(
            f"Effects of the insight in the prompt and of the edit on {metric}, paired over "
            f"{span(data['n'])} test users, 95 % intervals"
        ),
        xlabel=f"{metric} change",
        row="effect",
        method="edit",
        panel="model",
        better=better(metric),
    )


def control_figure(table: pd.DataFrame, task: str, publish: Publisher) -> FigureOutput:
    """Forest plot of the paper's edit minus its control directions, a panel per model.

    The fitted edit stands in the table alone: its differences are of another size.
    """
    part, metric = table[table["task"] == task.replace("_", "-")], get_task(task).metrics[0]
    part = part[part["edit"] == method_of(PAPER).title]
    data = drawn(part, "change", "control", "model")
    return forest(
        publish,
        data,
        f"06_directions_{task}",
        made_by=control_figure,
        title=f"{task.replace('_', '-')}: the paper's edit against control directions",
        caption=(
            f"The paper's edit minus a control on {metric}, paired over {span(data['n'])} test "
            "users, 95 % intervals. A direction that is personal must beat the common ones"
        ),
        xlabel=f"{metric} difference",
        row="control",
        panel="model",
        reference_label="the control",
        better=better(metric),
    )


# ---- Does agreement among users predict success?

HALVES = ("difference", "theta_p", "theta_n")
CHANCE = "halves: by chance"
AGREEMENTS = {
    "pairs": "cosine between pairs",
    "difference": "halves: mean difference",
    "theta_p": "halves: θP (SVD)",
    "theta_n": "halves: θN (CCS)",
}
_EDIT_NAMES = {PAPER: "paper's edit", FITTED: "fitted edit"}


def agreements(run: Run, store: ArtifactStore | None = None) -> pd.DataFrame:
    """One row per backbone and task of Table 1: agreements beside what the edits did.

    Two agreements, both known before any answer is asked: the mean cosine between the users' own
    differences P minus N (Braun et al. find that it predicts whether steering works), and the
    cosine between what the two halves of a group find. Cosines are over the layers that the paper's
    edit has. The margin is the measure of success that all tasks share, nats. Descriptive.
    """
    rows = []
    for cell in run.cells:
        part = pick(run.frame, task=cell.task, backbone=cell.backbone)
        halves = _halves(run, cell, store or ArtifactStore())
        row: dict[str, Any] = {
            "task": cell.task.replace("_", "-"),
            "backbone": cell.backbone,
            AGREEMENTS["pairs"]: float(np.mean([_pair_cosine(log) for log in cell.draws])),
            **{AGREEMENTS[name]: halves[name] for name in HALVES},
            CHANCE: chance(int(halves["width"])),
        }
        for method, title in _EDIT_NAMES.items():
            measured = {"margin": f"{title}, margin change"}
            row |= columns_of(measured, difference, part, method, "instruct")
        row |= {"n": len(run.test_users[cell.task]), "seeds": len(cell.draws)}
        rows.append(row)
    table = pd.DataFrame(rows).sort_values(AGREEMENTS["pairs"], ascending=False, kind="stable")
    return table.reset_index(drop=True)


def _pair_cosine(log: dict[str, Any]) -> float:
    rows = [row["pair_cosine"] for row in log["rows"] if int(row["layer"]) in log["layers"]]
    return float(np.mean(rows))


def _halves(run: Run, cell: Cell, store: ArtifactStore) -> dict[str, float]:
    """Mean absolute cosine between the halves of every group, by kind; and the model's width."""
    study = Study(run.profile, cell.backbone, cell.task, run.settings, store)
    train = study.prepare(without_gold(run.data[cell.task].train)).users
    found = []
    for group, log in zip(
        groups_of(study, train, [log["draw"] for log in cell.draws]), cell.draws, strict=True
    ):
        kept, _ = keep_different(group.pairs, run.settings)
        found.append(_between(study, kept, group.index, log["layers"]))
    return {name: float(np.mean([one[name] for one in found])) for name in (*HALVES, "width")}


def _between(
    study: Study, kept: Sequence[PreferencePair], index: int, layers: Sequence[int]
) -> dict[str, float]:
    h_p, h_n = study.activations(kept)
    users = sorted({pair.user_id for pair in kept})
    if len(users) < 2:
        return {**dict.fromkeys(HALVES, float("nan")), "width": float(h_p.shape[-1])}
    chosen = set(random.Random(f"halves/{index}").sample(users, len(users) // 2))
    first = torch.tensor([pair.user_id in chosen for pair in kept])

    def compute() -> dict[str, Tensor]:
        cosines = {}
        parts = [_directions(study, h_p[:, rows], h_n[:, rows], index) for rows in (first, ~first)]
        for name in HALVES:
            one, other = (part[name].double() for part in parts)
            cosines[name] = torch.cosine_similarity(one, other, dim=-1).abs()  # (L,)
        return cosines

    record = study.store.get_or_compute(
        "halves",
        {
            "h": [h_p, h_n],
            "first": first,
            "seed": index,
            "settings": study.inputs("direction_", "ccs_")["settings"],
        },
        compute,
        modules=("chameleon_lib.core.directions",),
    )
    found = {name: float(np.asarray(record[name])[list(layers)].mean()) for name in HALVES}
    return {**found, "width": float(h_p.shape[-1])}


def _directions(study: Study, h_p: Tensor, h_n: Tensor, seed: int) -> dict[str, Tensor]:
    found = find_directions("paper", h_p, h_n, study.settings, seed)
    mean = (h_p.double() - h_n.double()).mean(dim=1)
    return {"difference": mean, "theta_p": found.theta_p, "theta_n": found.theta_n}


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of every agreement with both margin changes, over the cells."""
    ranks = table.select_dtypes("number").rank()
    changes = [f"{title}, margin change" for title in _EDIT_NAMES.values()]
    found = ranks.corr().loc[list(AGREEMENTS.values()), changes]
    return found.rename_axis("agreement").reset_index().assign(n=len(table))


def agreement_figure(table: pd.DataFrame, publish: Publisher) -> FigureOutput:
    """Forest plot of the margin changes, cells in the order of their pair agreement."""
    pairs = table[AGREEMENTS["pairs"]]
    model = table["backbone"].str.removeprefix("demo:")
    names = pairs.map("{:+.2f}".format) + "  " + table["task"] + " " + model
    data = pd.concat(
        [
            drawn(table.assign(cell=names, edit=title), f"{title}, margin change", "cell", "edit")
            for title in _EDIT_NAMES.values()
        ],
        ignore_index=True,
    )
    return forest(
        publish,
        data,
        "06_agreement",
        made_by=agreement_figure,
        title="Agreement of users and effect of the edit",
        caption=(
            "The number before each cell is the mean cosine between its users' differences P - N. "
            f"Margin change against Instruct with 95 % intervals over {span(data['n'])} test "
            f"users; n = {len(table)} cells, so the order is a description"
        ),
        xlabel="margin change, nats",
        row="cell",
        panel="edit",
        reference_label="Instruct",
    )
