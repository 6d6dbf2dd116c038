"""Does agreement among users predict success? Descriptive, over the cells of Table 1.

Two agreements, both known before any answer is asked: the mean cosine between the users' own
differences P minus N (Braun et al. find that it predicts whether steering works), and the cosine
between what the two halves of a group find. Cosines are over the layers that the paper's edit has.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from chameleon_lib.core.directions import fit_directions
from chameleon_lib.core.preferences import PreferencePair, keep_different
from chameleon_lib.kit.figures import FigureOutput, dot_ci, save_figure
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.kit.tables import part_columns, span
from chameleon_lib.sections.arms import draw_group
from chameleon_lib.sections.data import without_gold
from chameleon_lib.sections.estimates import where_defined
from chameleon_lib.sections.group_size.agreement import chance
from chameleon_lib.sections.paired import difference
from chameleon_lib.sections.results import Cell, Run
from chameleon_lib.sections.study import Study

HALVES = ("difference", "theta_p", "theta_n")
CHANCE = "halves: by chance"
PAPER = "paper's edit, margin change"
AGREEMENTS = {
    "pairs": "cosine between pairs",
    "difference": "halves: mean difference",
    "theta_p": "halves: θP (SVD)",
    "theta_n": "halves: θN (CCS)",
}


def agreements(run: Run, store: ArtifactStore | None = None) -> pd.DataFrame:
    """One row per backbone and task of Table 1: agreements beside what the edits did.

    The margin is the measure of success that all tasks share, nats.
    """
    rows = []
    for cell in run.cells:
        halves = _halves(run, cell, store or ArtifactStore())
        row: dict[str, Any] = {
            "task": cell.task.replace("_", "-"),
            "backbone": cell.backbone,
            AGREEMENTS["pairs"]: float(np.mean([_pair_cosine(log) for log in cell.draws])),
            **{AGREEMENTS[name]: halves[name] for name in HALVES},
            CHANCE: chance(int(halves["width"])),
        }
        for method, title in (("chameleon", "paper's edit"), ("fitted", "fitted edit")):
            found = where_defined(difference, run, [cell], method, "instruct", "margin")
            row |= part_columns(found, f"{title}, margin change")
        row |= {"n": len(run.test_users[cell.task]), "seeds": len(cell.answers["chameleon"])}
        rows.append(row)
    frame = pd.DataFrame(rows).sort_values(AGREEMENTS["pairs"], ascending=False, kind="stable")
    return frame.reset_index(drop=True)


def _pair_cosine(log: dict[str, Any]) -> float:
    rows = [row["pair_cosine"] for row in log["rows"] if int(row["layer"]) in log["layers"]]
    return float(np.mean(rows))


def _halves(run: Run, cell: Cell, store: ArtifactStore) -> dict[str, float]:
    """Mean absolute cosine between the halves of every group, by kind; and the model's width."""
    study = Study(run.profile, cell.backbone, cell.task, run.settings, store)
    train, _ = study.prepare(without_gold(run.data[cell.task].train))
    pairs = study.pairs(train)
    seeds = run.settings.group_seeds
    draws = seeds if len(seeds) == len(cell.draws) else tuple(range(len(cell.draws)))
    found = []
    for index, log in zip(draws, cell.draws, strict=True):
        ids = {user.user.id for user in draw_group(train, run.settings.group_size, index)}
        kept, _ = keep_different([pair for pair in pairs if pair.user_id in ids], run.settings)
        found.append(_between(study, kept, index, log["layers"]))
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
    found = fit_directions(h_p, h_n, study.settings, seed, diagnostics=False)
    difference = (h_p.double() - h_n.double()).mean(dim=1)
    return {"difference": difference, "theta_p": found.theta_p, "theta_n": found.theta_n}


def rank_correlation(frame: pd.DataFrame, one: str, other: str) -> float:
    """Spearman's rank correlation of two columns."""
    ranks = frame[[one, other]].rank()
    return float(ranks[one].corr(ranks[other]))


def sentence(frame: pd.DataFrame) -> str:
    """What the agreements say about success, with the number of cells."""
    words = [
        f"Over {len(frame)} cells (backbones × tasks), a description and no test: rank correlation "
        "of the margin change with each agreement."
    ]
    for title in ("paper's edit", "fitted edit"):
        parts = [
            f"{name} {rank_correlation(frame, name, f'{title}, margin change'):+.2f}"
            for name in AGREEMENTS.values()
        ]
        words.append(f"{title.capitalize()}: {', '.join(parts)}.")
    half = frame[AGREEMENTS["theta_n"]]
    words.append(
        f"The halves of a group find θP again at a mean cosine of "
        f"{frame[AGREEMENTS['theta_p']].mean():.2f} and θN at {half.mean():.2f} "
        f"(lowest {half.min():.2f}); two random directions have {frame[CHANCE].mean():.2f}."
    )
    return " ".join(words)


def figure(frame: pd.DataFrame, profile: str) -> FigureOutput:
    """Forest plot of the margin changes, cells in the order of their pair agreement."""
    parts = []
    for title in ("paper's edit", "fitted edit"):
        column = f"{title}, margin change"
        names = {column: "value", f"{column}_low": "ci_low", f"{column}_high": "ci_high"}
        part = frame.drop(columns="n").rename(columns={**names, f"{column} n": "n"})
        part["edit"] = title
        cosine = part[AGREEMENTS["pairs"]].map("{:+.2f}".format)
        model = part["backbone"].str.removeprefix("demo:")
        part["cell"] = cosine + "  " + part["task"] + " " + model
        parts.append(part[["cell", "edit", "value", "ci_low", "ci_high", "n", "seeds"]])
    drawn = pd.concat(parts, ignore_index=True)
    image = dot_ci(
        drawn,
        title="Agreement of users and effect of the edit",
        profile=profile,
        xlabel="margin change, nats",
        row="cell",
        panel="edit",
        reference_label="Instruct",
    )
    best, worst = frame.iloc[0], frame.iloc[-1]
    top, bottom = (
        f"{row[PAPER]:+.2f}" if pd.notna(row[PAPER]) else "undefined" for row in (best, worst)
    )
    return save_figure(
        image,
        "06_agreement",
        alt=(
            f"Forest plot of {len(frame)} cells ordered by the mean cosine between pairs, from "
            f"{best[AGREEMENTS['pairs']]:+.2f} to {worst[AGREEMENTS['pairs']]:+.2f}; margin change "
            f"of the paper's edit {top} at the top and {bottom} at the bottom."
        ),
        caption=(
            "The number before each cell is the mean cosine between its users' differences P - N. "
            f"Margin change against Instruct with 95 % intervals over {span(drawn['n'])} test "
            f"users; n = {len(frame)} cells, so the order is a description ({profile} profile)."
        ),
        data=drawn,
        profile=profile,
    )

