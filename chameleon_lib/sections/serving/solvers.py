"""The fast CCS solver beside the reference: do they order layers and edit answers alike?

The groups, pairs and activations are those of Table 1, so what it computed is met again. The fast
solver minimises the same objective further than AdamW's budget does (``core.ccs_span``), so losses
and directions may differ; this table shows by how much and what becomes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from chameleon_lib.core.directions import Directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.preferences import keep_different
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.sections.answering import Exam
from chameleon_lib.sections.arms import draw_group
from chameleon_lib.sections.data import available_tasks, without_gold
from chameleon_lib.sections.fits import stored_directions
from chameleon_lib.sections.grid import Plan
from chameleon_lib.sections.scoring import reference_answers

SOLVERS = ("reference", "span")
_DRAW = 0
ORDERS = "same order of layers"
EDITED = "same edited layers"
EQUAL = "equal edited answers"


def compare_solvers(
    profile: RunProfile,
    settings: EditSettings,
    *,
    data_dir: str = "",
    max_users: int = 0,
    store: ArtifactStore | None = None,
) -> pd.DataFrame:
    """One row per task and studied backbone: layers and answers of both solvers, on one group.

    Args:
        profile: Run profile.
        settings: Those of Table 1.
        data_dir: Folder of official LaMP files; empty for the embedded world.
        max_users: Cap on train and on test users; 0 for the profile's numbers.
        store: Artifact store; the default one if None.
    """
    store = store or ArtifactStore()
    tasks, _ = available_tasks(profile, data_dir, settings.eval_split)
    if data_dir:
        settings = settings.with_(pairs_on_too_few="warn")
    rows = []
    for task in tasks:
        plan = Plan(profile, settings, task, data_dir, max_users, (_DRAW,), store.root)
        rows += [_compare(plan, name) for name in profile.studied]
    return pd.DataFrame(rows)


def _compare(plan: Plan, backbone: str) -> dict[str, Any]:
    desk = plan.open(backbone)
    study = desk.study
    train, _ = study.prepare(without_gold(desk.data.train))
    group = draw_group(train, study.settings.group_size, _DRAW)
    ids = {user.user.id for user in group}
    pairs = [pair for pair in study.pairs(train) if pair.user_id in ids]
    kept, _ = keep_different(pairs, study.settings)
    h_p, h_n = study.activations(kept)
    found: dict[str, Directions] = {}
    edits: dict[str, tuple[str, Edit | None]] = {"none": ("instruct", None)}
    for solver in SOLVERS:
        other = plan.study(backbone, study.settings.with_(ccs_solver=solver))
        found[solver] = stored_directions(other, "paper", h_p, h_n, _DRAW)
        edits[solver] = ("instruct", found[solver].to_edit(other.settings))
    exam = Exam(study, desk.test, reference_answers(study, desk.data, desk.test))
    said = {name: answers.texts for name, answers in exam.answer(edits).items()}
    layers = {name: one.choose_layers(study.settings) for name, one in found.items()}
    reference, span = (found[solver] for solver in SOLVERS)
    both = said["reference"], said["span"]
    changed = [
        at for at, (base, *two) in enumerate(zip(said["none"], *both, strict=True))
        if any(text != base for text in two)
    ]  # fmt: skip
    return {
        "task": plan.task.replace("_", "-"),
        "backbone": backbone,
        "pairs": len(kept),
        "mean loss, reference": float(reference.ccs_loss.mean()),
        "mean loss, span": float(span.ccs_loss.mean()),
        "layers by loss, reference": _order(reference),
        "layers by loss, span": _order(span),
        ORDERS: _order(reference) == _order(span),
        "edited, reference": _listed(layers["reference"]),
        "edited, span": _listed(layers["span"]),
        EDITED: layers["reference"] == layers["span"],
        "θN alike (mean |cos|)": _alike(reference.theta_n, span.theta_n),
        EQUAL: float(np.mean([a == b for a, b in zip(*both, strict=True)])),
        "answers that an edit changes": len(changed),
        "equal among these": float(np.mean([both[0][at] == both[1][at] for at in changed]))
        if changed else 1.0,
        "n": len(desk.test),
        "seeds": 1,
    }  # fmt: skip


def _order(found: Directions) -> str:
    """Layers from the lowest loss to the highest; equal losses keep their order."""
    return _listed(torch.argsort(found.ccs_loss, stable=True).tolist())


def _listed(layers: Sequence[int]) -> str:
    # No bare number: a table must not take the list of one layer for a measurement.
    return f"[{' '.join(map(str, layers))}]"


def _alike(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.cosine_similarity(one.double(), other.double(), dim=-1).abs().mean())
