"""What a worker of a population fit does: edits of groups, own edits, and what they gain.

* ``group``: users near each other, by the mean embedding of their histories (k-means on a sample),
  share an edit of their pooled pairs; every user is answered by the nearest group's.
* ``own``: beside that, an edit of each user's own pairs. One that does not make texts of the user's
  own history likelier that its fit did not see is refused, and the group's answers.
* ``collective-own``: the group's edit and then the own one, which is fitted on the bare model; it
  is kept where both in sequence are better than none. They are stored apart and joined when read.

Every user is scored on the held-out rows, which no fit reads: log p of the user's own answer, per
token, under the edit that answers minus under none; and, as the control, under the own edit of the
user before in the unit.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from chameleon_lib.backbones.embedder import OFFLINE_NAME, load_embedder
from chameleon_lib.core.affine import AffineEdit
from chameleon_lib.core.backbone import Backbone, Embedder
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.checks import FitCheck, check_fit
from chameleon_lib.core.edit import AnyEdit, Edit
from chameleon_lib.core.pairs import (
    PreparedUser,
    fit_context,
    keep_different,
    prompt_texts,
    prompts_digest,
)
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.sources import held_out_users
from chameleon_lib.core.task import User
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.progress import Progress
from chameleon_lib.serving.engines import DEATHS, Engine
from chameleon_lib.serving.files import locked
from chameleon_lib.serving.folder import open_base
from chameleon_lib.serving.population import FitOne, unended, user_line, user_of_line
from chameleon_lib.serving.sharded import ShardedStore, nearest, unit, user_vector
from chameleon_lib.serving.shards import (
    FEW,
    FITTED,
    LEFT,
    REFUSED,
    WORK,
    Group,
    Manifest,
    Precision,
    Row,
    read_groups,
    stored_edit,
    write_groups,
)

SAMPLED = 2  # users per place in a group that the centres are found from


@dataclass(frozen=True)
class ChameleonFitter:
    """Opens the model in a worker, and fits users with it; picklable.

    Attributes:
        backbone: Id of the model: ``demo:<family>:<seed>``, a folder, a hub id.
        settings: Of the fits.
        dtype: Precision of the model.
        embedder: Name of the sentence embedder.
        offline: Whether it is the copy of the environment.
    """

    backbone: str
    settings: EditSettings
    dtype: str = "auto"
    embedder: str = OFFLINE_NAME
    offline: bool = True

    def load(self) -> tuple[Backbone, Embedder]:
        """The model and the embedder."""
        transformers_logging.disable_progress_bar()
        base = open_base(self.backbone, self.dtype)
        return base, load_embedder(self.embedder, offline=self.offline)

    def manifest(self, task: str, edits: str, precision: Precision) -> Manifest:
        """What a store of such fits names; loads the model."""
        transformers_logging.disable_progress_bar()
        base = open_base(self.backbone, self.dtype)
        s = self.settings
        if s.edit_site == "gate_proj":
            raise UserError("A store's rows are as wide as the model; set edit_site to mlp_out.")
        fixed = s.layers_rule == "top_k" and not (s.theta_method == "fitted" and
                                                  s.fit_layers == "all")  # fmt: skip
        return Manifest(
            task=task, edits=edits, backbone=base.name, fingerprint=base.fingerprint,
            revision=base.revision, d=base.d, dtype=precision, settings=s.canonical(),
            slots=min(s.layers_k or base.n_layers, base.n_layers) if fixed else base.n_layers,
            prompts=prompts_digest(task, s), shards=1,
        )  # fmt: skip

    def open(self, root: Path) -> FitOne:
        backbone, embedder = self.load()
        manifest = Manifest.read(root)
        method = Chameleon(backbone, embedder, self.settings)
        return UserFits(method, manifest, read_groups(root, manifest)).fit


class UserFits:
    """Rows of users, one after the other.

    Args:
        method: The method, with the settings of the store.
        manifest: Of the store.
        groups: Of the store.
    """

    def __init__(self, method: Chameleon, manifest: Manifest, groups: Sequence[Group]) -> None:
        self.method, self.manifest, self.groups = method, manifest, list(groups)
        self._before: AnyEdit | None = None  # answering edit of the user before, if own

    def fit(self, user: User, key: bytes, data: bytes) -> Row:
        """The row of a user; see ``shards.Row``."""
        vector = user_vector([user], self.method.embedder, self.method.settings)[0]
        number, distance = nearest(vector, self.groups)
        group = next((one.edit for one in self.groups if one.number == number), None)
        row = Row(key, data, LEFT, group=number, distance=distance)
        edit: AnyEdit | None = group
        if self.manifest.edits != "group":
            row, edit = self._own(user, row, group)
        gain, control, rows = self._gains(user, edit)
        self._before = edit if row.edit is not None else self._before
        return replace(row, gain=gain, control=control, rows=rows)

    def _own(self, user: User, row: Row, group: Edit | None) -> tuple[Row, AnyEdit | None]:
        """The row with the own edit, if it is better than none, and the edit that answers."""
        method, s = self.method, self.method.settings
        pairs = method.source_pairs([user])
        kept, same = keep_different(pairs, s)
        if len(kept) < s.pairs_k_min:
            note = f"{len(kept)} pairs of different texts, {s.pairs_k_min} are needed."
            row = replace(row, n_pairs=len(kept), n_identical=len(same))
            return replace(row, state=FEW, note=note), group
        made = method.fit_pairs(pairs)  # without held-out users it is not checked: that is below
        row = replace(row, n_pairs=made.n_pairs, n_identical=made.n_identical)
        own = stored_edit(made.edit, self.manifest.dtype)
        both: AnyEdit = own
        if self.manifest.edits == "collective-own" and group is not None:
            both = AffineEdit.sequence(group, own)
        skip = s.pairs_items if method.source == "history" else 0
        check = judged(method, both, [user], skip)
        if not own.changes_anything:
            note = "No step of the fit was better than no edit."
            return replace(row, state=REFUSED, note=note, check=check), group
        if check is not None and s.check_edit in ("zero", "refuse") and not check.passes(s):
            check = replace(check, action="zero")
            note = (
                f"The own edit is not better than none on {check.texts} texts of the history: "
                f"{check.gain:+.3f} nats per token [{check.low:+.3f}, {check.high:+.3f}]."
            )
            return replace(row, state=REFUSED, note=note, check=check), group
        return replace(row, state=FITTED, edit=own, check=check), both

    @torch.no_grad()
    def _gains(self, user: User, edit: AnyEdit | None) -> tuple[float, float, int]:
        """Gain of the answering edit and of another user's on the held-out rows, and their number.

        log p per token, mean over the rows; NaN where none has an answer, 0 where the base answers.
        """
        asked = replace(user, queries=tuple(q for q in user.queries if q.gold is not None))
        if not asked.queries:
            return float("nan"), float("nan"), 0
        if edit is None and self._before is None:
            return 0.0, float("nan"), len(asked.queries)  # the base answers
        method, s = self.method, self.method.settings
        (indices,) = method.select([asked])
        items = fit_context(method.backbone, asked, [asked.history[at] for at in indices], s)
        if not items:
            return float("nan"), float("nan"), 0
        prompts = prompt_texts(asked.task, [PreparedUser(asked, items, "", "")], "instruct", s)
        prepared = method.backbone.prepare(prompts)
        golds = [str(query.gold) for query in asked.queries]
        plain = method.backbone.score(prepared, golds, reduce="mean")

        def gain(by: AnyEdit | None) -> float:
            if by is None:
                return 0.0
            scores = method.backbone.score(prepared, golds, edit=by, reduce="mean")
            return float((scores - plain).double().mean())

        other = float("nan") if self._before is None else gain(self._before)
        return gain(edit), other, len(golds)


def judged(
    method: Chameleon, edit: AnyEdit, held: Sequence[User], skip: int
) -> FitCheck | None:
    """What an edit does to texts of these histories, without the first ``skip`` of each.

    None where fewer than two texts are left. ``core.checks`` says what is measured.
    """
    texts = method.history_pairs(held, skip)
    if len(texts) < 2:
        return None
    # Every edit runs through the same hook; of the paper's own nothing else is asked.
    return check_fit(method.backbone, cast(Edit, edit), texts, method.settings)


# --- groups ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupWork:
    """Finds groups (unit −1) and fits the edit of each (its number); picklable.

    Attributes:
        root: The store.
        fitter: Opens the model.
        count: Groups.
    """

    root: Path
    fitter: ChameleonFitter
    count: int

    @property
    def folder(self) -> Path:
        return self.root / WORK / "groups"

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest.read(self.root)

    def progressed(self, unit: tuple[int]) -> int:
        path = self.folder / f"{unit[0]}.trying"
        return path.stat().st_size if path.exists() else 0

    def open(self) -> Callable[[tuple[int]], None]:
        backbone, embedder = self.fitter.load()
        method = Chameleon(backbone, embedder, self.fitter.settings)
        return lambda unit: self._do(unit[0], method)

    def _do(self, number: int, method: Chameleon) -> None:
        if number < 0:
            self._divide(method)
            return
        trying = self.folder / f"{number}.trying"
        deaths = Counter(unended(trying))[str(number)]
        with trying.open("ab", buffering=0) as log:
            log.write(b"+%d\n" % number)
            users = [user_of_line(line) for line in (self.folder / f"{number}.jsonl").open("rb")]
            store = ShardedStore(self.root)
            keys = tuple(sorted(store.key_of(user.id) for user in users))
            vectors = user_vector(users, method.embedder, method.settings)
            group = Group(number, None, unit(vectors.mean(axis=0)), keys)
            if deaths < DEATHS:
                group = self._fit(group, users, method)
            out = self.folder / str(number)
            out.mkdir(exist_ok=True)
            write_groups(out, [group], self.manifest)
            log.write(b"-%d\n" % number)

    def _divide(self, method: Chameleon) -> None:
        """k-means of the sampled users' vectors; the members of a group are the nearest ones."""
        from sklearn.cluster import KMeans

        s = method.settings
        users = [user_of_line(line) for line in (self.folder / "sample.jsonl").open("rb")]
        vectors = user_vector(users, method.embedder, s)
        count = min(self.count, len({row.tobytes() for row in vectors}))
        found = KMeans(count, n_init=4, random_state=s.seed).fit(vectors)
        distances = 1 - vectors @ np.stack([unit(row) for row in found.cluster_centers_]).T
        for number in range(count):
            inside = np.flatnonzero(found.labels_ == number)
            order = inside[np.argsort(distances[inside, number], kind="stable")][: s.group_size]
            members = b"".join(user_line(users[at]) for at in sorted(order))
            (self.folder / f"{number}.jsonl").write_bytes(members)

    def _fit(self, group: Group, users: Sequence[User], method: Chameleon) -> Group:
        """The group with its edit, if one is better than none on members held out of it."""
        s = method.settings
        inside, outside = held_out_users(users, s)
        pairs = method.source_pairs(inside)
        try:
            made = method.fit_pairs(pairs)
        except UserError:  # too few pairs
            return group
        edit = stored_edit(made.edit, self.manifest.dtype)
        learned = method.source == "history" and not outside
        check = judged(method, edit, outside or inside, s.pairs_items if learned else 0)
        refused = check is not None and s.check_edit in ("zero", "refuse") and not check.passes(s)
        if check is not None and refused:
            check = replace(check, action="zero")
        kept = edit.changes_anything and not refused
        return replace(group, edit=edit if kept else None, n_pairs=made.n_pairs, check=check)


def fit_groups(
    store: ShardedStore,
    fitter: ChameleonFitter,
    users: Iterable[User],
    engine: Engine,
    count: int,
) -> list[Group]:
    """Fit the groups of a store that has none, and those again that lost a member.

    Args:
        store: Under its ``fit_lock``.
        fitter: Opens the model.
        users: Of one task; a sample of them stays in memory.
        engine: Does the fits.
        count: Groups of a new store.

    Returns:
        All groups.
    """
    old = store.groups
    again = {group.number: set(group.members) for group in old if group.forgotten}
    if old and not again:
        return old
    work = GroupWork(store.root, fitter, count)
    work.folder.mkdir(parents=True, exist_ok=True)
    if again:
        for number, members in again.items():
            # Whoever lost all of its members keeps its centre and has no edit until others come.
            found = [user for user in users if store.key_of(user.id) in members]
            if not found:
                raise UserError(
                    f"No member of group-{number:04d} is among the users, and it must be fitted "
                    "again; fit into a new folder."
                )
            (work.folder / f"{number}.jsonl").write_bytes(b"".join(map(user_line, found)))
        numbers = sorted(again)
    else:
        asked = digest([count, fitter.settings.seed])[:16]
        mark = work.folder / "sampled.json"
        if not mark.exists() or json.loads(mark.read_text()) != asked:
            size = SAMPLED * count * fitter.settings.group_size
            sample = heapq.nsmallest(size, users, key=lambda user: _place(user, fitter.settings))
            lines = b"".join(map(user_line, sorted(sample, key=lambda user: user.id)))
            (work.folder / "sample.jsonl").write_bytes(lines)
            for _ in engine.run(work, [(-1,)]):
                pass
            mark.write_text(json.dumps(asked))
        numbers = sorted(int(path.stem) for path in work.folder.glob("[0-9]*.jsonl"))
    left = [number for number in numbers if not (work.folder / str(number)).is_dir()]
    with Progress("groups fitted", len(left)) as progress:
        for unit_ in engine.run(work, [(number,) for number in left]):
            progress.advance(0 if unit_ is None else 1)
    made = {number: read_groups(work.folder / str(number), store.manifest)[0] for number in numbers}
    whole = {group.number: group for group in old} | made
    with locked(store.root):
        write_groups(store.root, [whole[number] for number in sorted(whole)], store.manifest)
    return store.groups


def _place(user: User, settings: EditSettings) -> bytes:
    text = f"sample\0{settings.seed}\0{user.id}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
