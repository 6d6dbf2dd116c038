"""From a table of users to a store of edits, and from the store to one user's answer.

What the commands ``fit`` and ``answer --store`` do, as lines for a terminal. The fits themselves
are ``serving.fit_users``; here is who is fitted, under which settings, and the report.
"""

from __future__ import annotations

import ast
import csv
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from transformers.utils import logging as transformers_logging

from chameleon_lib.core.backbone import same_weights
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.fitting import EditProfile
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import Query, User, official_input
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile, get_profile
from chameleon_lib.kit.progress import duration
from chameleon_lib.kit.stats import bootstrap_mean, effect_word
from chameleon_lib.serving.engines import Engine, InlineEngine
from chameleon_lib.serving.files import fit_lock
from chameleon_lib.serving.fit_users import ChameleonFitter, fit_groups
from chameleon_lib.serving.folder import open_base
from chameleon_lib.serving.population import Fitted, fit_population, open_for_fit
from chameleon_lib.serving.sharded import ShardedStore, open_store, user_vector
from chameleon_lib.serving.shards import FITTED, Group, Precision
from chameleon_lib.serving.store import EditStore
from chameleon_lib.studies.own_users import ASKED, find_user
from chameleon_lib.studies.study import open_embedder, settings_for

_INDENT = "    "
EDITS = ("group", "own", "collective-own")
MOST_GROUPS = 32  # unless another number is asked for
# Of the settings of a run: what a user writes is what is learned, every edit is checked on texts
# that its fit did not see, and edits every token, so that it can be exported. A single user has few
# pairs.
FITS = {
    "theta_method": "fitted", "edit_positions": "all", "pairs_source": "auto",
    "fit_rule": "guarded", "fit_loss": "likelihood", "check_edit": "zero",
    "pairs_items": 8, "pairs_k_min": 4, "fit_steps": 16, "fit_batch": 8,
}  # fmt: skip


def fit_settings(profile: RunProfile, changes: Sequence[str] = ()) -> EditSettings:
    """The settings of a population's fits.

    Args:
        profile: Its sizes of prompts and answers.
        changes: ``NAME=VALUE`` of any setting.

    Raises:
        UserError: A malformed change, or a value that the setting does not take.
    """
    values: dict[str, object] = dict(FITS)
    for text in changes:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set takes NAME=VALUE of a setting, not {text!r}.")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value
    return settings_for(profile, **values)


def fit_lines(
    profile_name: str,
    users: Sequence[User],
    folder: Path,
    engine: Engine,
    *,
    backbone: str = "",
    edits: str = "own",
    groups: int | None = None,
    precision: Precision = "bfloat16",
    changes: Sequence[str] = (),
    report: Path | None = None,
) -> Iterator[str]:
    """Fit a population into a store, and say what came of it.

    Args:
        profile_name: Sizes of prompts and answers, and the model if none is named.
        users: Of one task.
        folder: The store; one that is there goes on.
        engine: Does the fits.
        backbone: Id of the model.
        edits: One of :data:`EDITS`.
        groups: Groups; one for every ``group_size`` users, at most :data:`MOST_GROUPS`, if None.
        precision: Of the stored directions.
        changes: ``NAME=VALUE`` of settings.
        report: Receives a line per user, with the users' ids; none is written if None.
    """
    if not users:
        raise UserError("There are no users to fit; see the import report for who was dropped.")
    profile = get_profile(profile_name, [backbone] if backbone else [])
    settings = fit_settings(profile, changes)
    if groups is None:
        groups = min(MOST_GROUPS, -(-len(users) // settings.group_size))
    if edits != "own" and not groups:
        raise UserError(f"--edits {edits} needs groups; give --groups 1 or more.")
    fitter = ChameleonFitter(
        profile.studied[0], settings, profile.dtype, settings.selection_embedder, profile.offline
    )
    yield profile.banner
    with _quiet(), fit_lock(folder):
        store = open_for_fit(folder, fitter.manifest(users[0].task, edits, precision), len(users))
        m = store.manifest
        yield (
            f"{len(users):,} users of {m.task}, {edits} edits of {m.backbone} into {folder}: "
            f"{m.row_bytes:,} bytes a row in {m.dtype}, {m.shards} shards"
        )
        made = fit_groups(store, fitter, users, engine, groups) if groups else []
        done = fit_population(store, fitter, users, engine)
    yield (
        f"fitted now: {done.now:,} users in {duration(done.seconds)}; were done: {done.before:,}"
    )
    yield from report_lines(done, made)
    if report is not None:
        write_report(store, users, report)
        yield f"wrote {report}"


def report_lines(done: Fitted, groups: Sequence[Group]) -> Iterator[str]:
    """What a fit did and what it gained."""
    yield "of all users in the store:"
    for state, count in done.states.items():
        yield f"{_INDENT}{state}: {count:,}"
        for note, times in done.notes.get(state, {}).items() if state != FITTED else ():
            if times == max(done.notes[state].values()):
                yield f"{_INDENT * 2}such as ({times:,}): {note}"
                break
    for group in groups:
        what = "no edit that is better than none" if group.edit is None else "has an edit"
        told = "" if group.check is None else f"; {group.check.sentence()}"
        yield f"{_INDENT}{group.name}: {len(group.members)} members, {what}{told}"
    known = np.sort(done.gains[np.isfinite(done.gains)])  # their order is that of the hashes
    if not len(known):
        yield "gain on held-out rows: none has an answer to be scored on"
        return
    gain = bootstrap_mean(known)
    word = effect_word(gain.low, gain.high, gain.n)
    yield (
        f"gain on held-out rows over no edit, nats per token: {gain.value:+.3f} "
        f"[{gain.low:+.3f}, {gain.high:+.3f}], n {gain.n} users, 1 seed{word and f': {word}'}"
    )
    both = np.isfinite(done.gains) & np.isfinite(done.controls)
    if both.any():
        over = bootstrap_mean(done.gains[both], done.controls[both])
        yield (
            f"over another user's own edit (control): {over.value:+.3f} [{over.low:+.3f}, "
            f"{over.high:+.3f}], n {over.n} users, 1 seed"
        )
    yield f"harmed (gain below 0): {(known < 0).mean():.0%} of them"


def write_report(store: ShardedStore, users: Sequence[User], path: Path) -> None:
    """A line per user, under the user's own id: it belongs to whoever has the table."""
    names = ("state", "group", "distance", "n_pairs", "rows", "gain", "control", "note")
    found = {cells["user"]: cells for cells in store.rows(("user", *names))}
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["user", *names])
        for user in users:
            cells = found[store.key_of(user.id)]
            shown = [cells[name] for name in names]
            writer.writerow([user.id, *("" if value != value else value for value in shown)])


def small_store(
    profile: RunProfile, backbone: str, users: Sequence[User], folder: Path, *, groups: int = 1
) -> tuple[ShardedStore, Fitted]:
    """A store of a few users, fitted in this process in half the steps: for a notebook."""
    settings = fit_settings(profile, ["fit_steps=8"])
    fitter = ChameleonFitter(
        backbone, settings, profile.dtype, settings.selection_embedder, profile.offline
    )
    with _quiet(), fit_lock(folder):
        manifest = fitter.manifest(users[0].task, "own", "bfloat16")
        store = open_for_fit(folder, manifest, len(users))
        fit_groups(store, fitter, users, InlineEngine(), groups)
        return store, fit_population(store, fitter, users, InlineEngine())


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings about single users are unheard: the report says it once for all."""
    logger = logging.getLogger("chameleon_lib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def fitted_table(store: ShardedStore, users: Sequence[User]) -> pd.DataFrame:
    """What the store holds of users, a row each; the gain is that of the edit that answers."""
    shown = []
    for user in users:
        row = store.row(user.id)
        if row is not None:
            shown.append({
                "user": user.id, "own edit": row.state, "pairs": row.n_pairs, "group": row.group,
                "distance": row.distance, "gain (nats per token)": row.gain, "rows": row.rows,
            })  # fmt: skip
    return pd.DataFrame(shown)


def answering_table(
    store: ShardedStore, users: Sequence[User], profile: RunProfile, backbone: str
) -> pd.DataFrame:
    """Which edit answers each user, and why; whom the store does not know is placed by history."""
    method, rows = _method_of(store, users[0], profile, backbone), []
    for user in users:
        vector = None
        if store.row(user.id) is None:
            vector = user_vector([user], method.embedder, method.settings)[0]
        found = store.answering(user.id, vector)
        rows.append({"user": user.id, "edit": found.source, "why": found.why})
    return pd.DataFrame(rows)


def stored_answer_lines(
    profile_name: str,
    users: list[User],
    user_id: str,
    query: str,
    folder: Path,
    backbone: str = "",
) -> Iterator[str]:
    """One user's query, answered by the base and by the edit that the store has for the user.

    Empty texts stand for the first user, the user's first held-out row, and the store's own model.
    """
    transformers_logging.disable_progress_bar()
    store, user = open_store(folder), find_user(users, user_id)
    if query:
        asked = Query(ASKED, query, official_input(user.task, query), None)
    else:
        asked = user.queries[0]
    user = replace(user, queries=(asked,))
    profile = get_profile(profile_name, [backbone] if backbone else [])
    method = _method_of(store, user, profile, profile.studied[0] if backbone else "")
    vector = None
    if isinstance(store, ShardedStore) and store.row(user.id) is None:
        vector = user_vector([user], method.embedder, method.settings)[0]
    found = store.answering(user.id, vector)
    yield f"user {user.id} ({user.task}), backbone {method.backbone.name}"
    yield f"query: {asked.text}"
    if asked.gold is not None:
        yield f"the user's own answer: {asked.gold}"
    yield f"edit: {found.why}"
    (plain,) = method.with_(infer_edit=False).answer([user])
    yield f"without edit: {plain}"
    if found.source == "none":
        return
    edited = store.read(user.id if found.source == "own" else found.group, method.backbone)
    assert isinstance(edited, EditProfile)  # answering refuses others
    (answer,) = method.answer([user], edited)
    yield f"with edit:    {answer}"


def _method_of(store: EditStore, user: User, profile: RunProfile, backbone: str) -> Chameleon:
    """The method under the settings of the store, on the store's model."""
    if isinstance(store, ShardedStore):
        m = store.manifest
        if m.task != user.task:
            raise UserError(f"{store.root} holds edits of {m.task}, and {user.task} is asked.")
        base = open_base(backbone or m.backbone, profile.dtype)
        if base.name != m.backbone or not same_weights(base.fingerprint, m.fingerprint):
            raise UserError(
                f"{store.root} holds edits of {m.backbone} ({m.fingerprint[:12]}), and "
                f"{base.name} ({base.fingerprint[:12]}) is loaded; give --backbone that model."
            )
        settings = m.edit_settings
    else:
        base = open_base(profile.studied[0], profile.dtype)
        settings = fit_settings(profile)
        if store.answering(user.id).source == "own":
            edited = store.read(user.id, base)
            assert isinstance(edited, EditProfile)
            settings = edited.settings
    embedder = open_embedder(settings.selection_embedder, profile.offline)
    return Chameleon(base, embedder, settings.with_(eval_user_mode="seen"))
