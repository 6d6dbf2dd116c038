"""One base, many users: who is served with which edit, in which form, and what they are told.

In the embedded world every user has several queries: the first ones make the user's own edit, the
last ones are asked. Official files have one query per user, so there a small group of train users
makes each edit and a test user is asked. Beside the own edits, which a preference fit finds, all
pairs together give one edit of the paper's kind, which chooses its layers: users of one batch then
edit different layers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.chameleon import Case
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import EditProfile
from chameleon_lib.core.pairs import PreparedUser, keep_different, max_new_tokens, prompt_texts
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.serving.adapter import adapters
from chameleon_lib.serving.agreement import View, distance, view
from chameleon_lib.serving.export import Export, check_form, export_edit
from chameleon_lib.serving.mixed import mixed_users
from chameleon_lib.serving.store import ProfileStore
from chameleon_lib.studies.arms import exam_of, groups_of
from chameleon_lib.studies.data import TaskData, load_task_data, without_gold
from chameleon_lib.studies.methods import model_of, tell_apart, title_of
from chameleon_lib.studies.run import Plan, plans_of
from chameleon_lib.studies.study import Study, settings_for

LEARNED, ASKED = 6, 2  # queries of a user of the embedded world
MEMBERS = 10  # users whose pairs make one edit where every user has one query
POOLED = "all of them"  # name of the profile of everybody's pairs
FORMS = {"peft": "PEFT adapter", "merged": "merged weights", "gguf": "GGUF adapter"}
SERVER_RANK = 8  # the smallest that vLLM takes beside 1
PADDED = f"peft, rank {SERVER_RANK}"
EQUAL = "equal edited answers"
# What the span solver finds changes with the last bits of the activations: shown, and not saved.
UNSTABLE = ("mean loss, span", "θN alike (mean |cos|)", EQUAL, "answers that an edit changes",
            "equal among these")  # fmt: skip
_SEED = 0  # the draw of Table 1's group on which the solvers are compared
_PROMPTS = 3  # of the comparison with the hook


@dataclass(frozen=True)
class Served:
    """A user who asks queries that no fit has seen, under what name, and the edit that answers."""

    name: str
    asks: PreparedUser
    profile: EditProfile


class Row(NamedTuple):
    """One row of a batch: a prompt and the profile that edits it, or None."""

    prompt: str
    profile: str | None


@dataclass(frozen=True)
class Service:
    """One base and its users, each with an edit; ``pooled`` is the paper's, from all pairs."""

    study: Study
    data: TaskData
    served: list[Served]
    pooled: EditProfile

    @property
    def title(self) -> str:
        """Of the model, as in tables."""
        return title_of(model_of(self.study.backbone_id))

    @property
    def profiles(self) -> dict[str, EditProfile]:
        """All profiles by name."""
        return {user.name: user.profile for user in self.served} | {POOLED: self.pooled}

    def prompts(self, users: Sequence[PreparedUser]) -> list[str]:
        """The prompts that edits are asked with: the user's history, and no insight."""
        return prompt_texts(self.study.task, users, "instruct", self.study.settings)

    def one_query(self) -> list[Row]:
        """The first user's query in every user's prompt: under no edit, the own, the pooled."""
        query = self.served[0].asks.user.queries[0]
        askers = [
            replace(user.asks, user=replace(user.asks.user, queries=(query,)))
            for user in self.served
        ]
        return [
            Row(prompt, profile)
            for prompt, user in zip(self.prompts(askers), self.served, strict=True)
            for profile in (None, user.name, POOLED)
        ]

    def together(self, rows: Sequence[Row]) -> list[str]:
        """Answers to all rows in one batch, each under its own edit."""
        edits = [self._edit(row) for row in rows]
        return self.say([row.prompt for row in rows], Edit.stack(edits, allow_missing=True))

    def alone(self, rows: Sequence[Row]) -> list[str]:
        """Answers to every row by itself."""
        return [self.say([row.prompt], self._edit(row))[0] for row in rows]

    def say(self, prompts: Sequence[str], edit: Edit | None) -> list[str]:
        """Answers to prompts under one edit."""
        limit = max_new_tokens(self.study.task, self.study.settings)
        return self.study.backbone.generate(list(prompts), max_new_tokens=limit, edit=edit)

    def _edit(self, row: Row) -> Edit | None:
        return None if row.profile is None else self.profiles[row.profile].edit


def settings_of(profile: RunProfile, **changes: Any) -> EditSettings:
    """The profile's settings with an edit that every form can carry.

    Adapters and weights act on all tokens, so the edit has to (A11). A handful of pairs is learned
    in a few steps.
    """
    fixed = {"edit_positions": "all", "pairs_on_too_few": "warn", "fit_steps": 12}
    return settings_for(profile, **{**fixed, **changes})


def run(
    profile: RunProfile,
    settings: EditSettings,
    *,
    task: str,
    users: int = 5,
    data_dir: str = "",
    store: ArtifactStore | None = None,
) -> list[Service]:
    """The service on every studied backbone.

    Raises:
        UserError: Fewer than two users, too few in the files, a user without a single pair, or two
            backbones that tables would call alike.
    """
    if users < 2:
        raise UserError(f"users is {users}; serve at least 2.")
    tell_apart(profile.studied)
    if data_dir:
        data = load_task_data(profile, task, data_dir)
    else:
        # One user's history does not depend on the number of queries: Table 1's work is met again.
        data = load_task_data(profile, task, max_users=users, world={"queries": LEARNED + ASKED})
    return [
        _serve(Study(profile, name, task, settings, store), data, users) for name in profile.studied
    ]


def _serve(study: Study, data: TaskData, users: int) -> Service:
    train, _ = study.prepare(without_gold(data.train))
    if data.truth is not None:
        groups = [[_part(user, 0, LEARNED)] for user in train[:users]]
        asking = [_part(user, LEARNED, None) for user in train[:users]]
    else:
        groups = [train[at : at + MEMBERS] for at in range(0, users * MEMBERS, MEMBERS)]
        asking = study.prepare(without_gold(data.test[: 2 * users]))[0][:users]
    if len(asking) < users or not all(groups):
        raise UserError(
            f"{study.backbone_id} can read {len(train)} train and {len(asking)} asking users, too "
            f"few to serve {users}; give fewer users or more data."
        )
    own = study.with_(theta_method="fitted", fit_layers="all")
    served, everything = [], []
    for number, (group, asks) in enumerate(zip(groups, asking, strict=True)):
        pairs = study.pairs(group)
        if not keep_different(pairs, study.settings)[0]:
            raise UserError(
                f"{study.backbone_id}: the pairs of user {number + 1} are all identical, so "
                "nothing can be learned from them; give fewer users or another task."
            )
        everything += pairs
        served.append(Served(f"user {number + 1}", asks, own.fit_pairs(pairs)))
    pooled = study.with_(theta_method="paper").fit_pairs(everything)
    return Service(study, data, served, pooled)


def _part(user: PreparedUser, start: int, stop: int | None) -> PreparedUser:
    """The user with some of the queries."""
    return replace(
        user,
        user=replace(user.user, queries=user.user.queries[start:stop]),
        query_insights=user.query_insights[start:stop],
    )


@dataclass(frozen=True)
class Shipped:
    """What came out of the compiler.

    Attributes:
        exports: (profile, form) → export.
        untouched: (profile, form) → whether the base answered bit for bit as before while the
            adapter was loaded and disabled (``peft``), or after the export.
        directions: Bytes of the first user's stored directions, without their description.
        tensors: Form → bytes of its tensor files, for the first user.
        mixed: Answers of the one batch, served by PEFT from the exported files.
        refused: One sentence for every form that cannot carry an edit here.
    """

    service: Service
    exports: dict[tuple[str, str], Export] = field(default_factory=dict)
    untouched: dict[tuple[str, str], bool] = field(default_factory=dict)
    directions: list[int] = field(default_factory=list)
    tensors: dict[str, int] = field(default_factory=dict)
    mixed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def backbone(self) -> HFBackbone:
        """The base."""
        return cast(HFBackbone, self.service.study.backbone)


def ship(service: Service, rows: Sequence[Row]) -> Shipped:
    """Store, load and export every profile, and answer the batch from the exported files.

    All is written to a temporary folder and read back. Every profile becomes a PEFT adapter;
    weights and GGUF are written for the first user and the pooled edit: of a large model every
    merged copy takes the space of the model.
    """
    shipped = Shipped(service)
    backbone = shipped.backbone
    prompts = service.prompts([user.asks for user in service.served])[:_PROMPTS]
    ids = backbone.codec.prompts(prompts)
    before = view(backbone, ids, None)
    first = service.served[0].name
    exported: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = ProfileStore(folder / "profiles")
        for name, profile in service.profiles.items():
            key = profile.users[0] if len(profile.users) == 1 else name
            store.save(key, profile, all_layers=False)
            loaded = store.load(key, backbone)
            if name == first:
                shipped.directions.append(len(save(store.files.get(key).tensors)))
            for form in [*FORMS, PADDED] if name in (first, POOLED) else ["peft"]:
                kind = form.split(",")[0]
                try:
                    check_form(loaded.edit, backbone, kind)
                except UserError as reason:
                    shipped.refused.append(f"{name}, {FORMS[kind]}: {reason}")
                    continue
                target = folder / f"{kind}-{len(shipped.exports)}"
                rank = SERVER_RANK if form == PADDED else 2
                shipped.exports[name, form] = export_edit(
                    loaded, backbone, target,
                    form=kind, rank=rank, base_model=backbone.name, prompts=prompts,
                )  # fmt: skip
                shipped.untouched[name, form] = _untouched(backbone, kind, target, ids, before)
                if name == first:
                    shipped.tensors[form] = _tensor_bytes(target)
                if form == "peft":
                    exported[name] = target
        if {row.profile for row in rows if row.profile} <= set(exported):
            asked, profiles = zip(*rows, strict=True)
            limit = max_new_tokens(service.study.task, service.study.settings)
            with mixed_users(backbone, exported) as batch:
                shipped.mixed.extend(batch.generate(asked, profiles, max_new_tokens=limit))
    return shipped


def _untouched(
    backbone: HFBackbone, kind: str, folder: Path, ids: list[list[int]], before: View
) -> bool:
    if kind != "peft":
        return distance(before, view(backbone, ids, None)) == 0
    with adapters(backbone, [folder]) as model, model.disable_adapter():
        return distance(before, view(backbone, ids, None)) == 0


def _tensor_bytes(folder: Path) -> int:
    """Bytes of the files that hold tensors; names and texts beside them are not counted."""
    found = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf")]
    return sum(path.stat().st_size for path in found)


def solver_table(
    profile: RunProfile,
    settings: EditSettings,
    *,
    data_dir: str = "",
    max_users: int = 0,
    store: ArtifactStore | None = None,
) -> pd.DataFrame:
    """The fast CCS solver beside the reference: one row per task and studied backbone.

    Groups, pairs and activations are Table 1's, so what it computed is met again. The fast solver
    minimises the same objective further than AdamW's budget does (``ccs_solver`` span), so losses
    and directions may differ, from machine to machine as well; what becomes of that is counted.
    Layers are the reference's for both.

    """
    plans, _ = plans_of(profile, settings, data_dir=data_dir, max_users=max_users, store=store)
    return pd.DataFrame([_solved(plan, name) for plan in plans for name in profile.studied])


def stable_part(both: pd.DataFrame) -> pd.DataFrame:
    """What of a solver table comes out alike on every machine."""
    return both.drop(columns=list(UNSTABLE))


def _solved(plan: Plan, backbone: str) -> dict[str, Any]:
    desk = plan.open(backbone)
    study = desk.study
    [group] = groups_of(study, desk.train, (_SEED,))
    kept, identical = keep_different(group.pairs, study.settings)
    cases = [
        Case(study.with_(ccs_solver=solver), kept, identical, group.pairs, _SEED)
        for solver in ("reference", "span")
    ]
    edits: list[Edit | None] = [None, *(case.edit("paper") for case in cases)]
    arms = {at: ("instruct", edit) for at, edit in enumerate(edits)}
    base, *both = (np.array(said.texts) for said in exam_of(desk).answer(arms).values())
    equal = both[0] == both[1]
    edited = (both[0] != base) | (both[1] != base)
    reference, span = (case.main for case in cases)
    alike = torch.cosine_similarity(reference.theta_n.double(), span.theta_n.double(), dim=-1)
    return {
        "task": plan.task.replace("_", "-"),
        "backbone": backbone,
        "pairs": len(kept),
        "mean loss, reference": float(reference.ccs_loss.mean()),
        "layers by loss": _listed(torch.argsort(reference.ccs_loss, stable=True).tolist()),
        "edited": _listed(cases[0].layers),
        "mean loss, span": float(span.diagnostics["ccs_loss"].mean()),
        "θN alike (mean |cos|)": float(alike.abs().mean()),
        EQUAL: float(equal.mean()),
        "answers that an edit changes": int(edited.sum()),
        "equal among these": float(equal[edited].mean()) if edited.any() else 1.0,
        "n": len(desk.test),
        "seeds": 1,
    }


def _listed(layers: Sequence[int]) -> str:
    # No bare number: a table must not take the list of one layer for a measurement.
    return f"[{' '.join(map(str, layers))}]"
