"""Edits of a handful of users on one base: who is served, with which profile.

In the embedded world every user has several queries: the first ones make the user's own edit, the
last ones are asked. Official files have one query per user, so there a small group of train users
makes each edit and a test user is asked. Beside the own edits, which a preference fit finds, all
pairs together give one edit of the paper's kind, which chooses its layers: users of one batch then
edit different layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from chameleon_lib.core.contrasts import contrasts_from_pairs
from chameleon_lib.core.edit_profile import EditProfile
from chameleon_lib.core.fitting import FittedDirections
from chameleon_lib.core.plain_prompts import PlainPrompts
from chameleon_lib.core.preferences import (
    PreferencePair,
    PreparedUser,
    keep_different,
)
from chameleon_lib.core.prompts_digest import prompts_digest
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.sections.data import TaskData, load_task_data, without_gold
from chameleon_lib.sections.fits import stored_directions, stored_fit
from chameleon_lib.sections.loading import settings_for
from chameleon_lib.sections.study import Study

LEARNED, ASKED = 6, 2  # queries of a user of the embedded world
MEMBERS = 10  # users whose pairs make one edit where every user has one query
POOLED = "all of them"  # name of the profile of everybody's pairs
_SEED = 0


@dataclass(frozen=True)
class Served:
    """A user who is served.

    Attributes:
        name: What tables call the user.
        asks: With queries that no fit has seen.
        profile: The edit that answers.
    """

    name: str
    asks: PreparedUser
    profile: EditProfile


@dataclass(frozen=True)
class Service:
    """One base and its users.

    Attributes:
        study: Backbone, task and settings.
        data: Where the users come from.
        served: The users.
        pooled: The paper's edit from all pairs of the fits.
    """

    study: Study
    data: TaskData
    served: list[Served]
    pooled: EditProfile

    @property
    def profiles(self) -> dict[str, EditProfile]:
        """All profiles by name."""
        return {user.name: user.profile for user in self.served} | {POOLED: self.pooled}


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

    Args:
        profile: Run profile.
        settings: Of :func:`settings_of`.
        task: Task name.
        users: How many are served.
        data_dir: Folder of official LaMP files; empty for the embedded world.
        store: Artifact store; the default one if None.

    Raises:
        UserError: Fewer than two users, too few in the files, or a user without a single pair.
    """
    if users < 2:
        raise UserError(f"users is {users}; serve at least 2.")
    if data_dir:
        data = load_task_data(profile, task, data_dir)
    else:
        # One user's history does not depend on the number of queries: Table 1's work is met again.
        data = load_task_data(profile, task, max_users=users, world={"queries": LEARNED + ASKED})
    return [
        _serve(Study(profile, name, task, settings, store), data, users) for name in profile.studied
    ]


def _serve(study: Study, data: TaskData, users: int) -> Service:
    personal = data.truth is not None
    train, _ = study.prepare(without_gold(data.train))
    if personal:
        groups = [[part(user, 0, LEARNED)] for user in train[:users]]
        asking = [part(user, LEARNED, None) for user in train[:users]]
    else:
        groups = [train[at : at + MEMBERS] for at in range(0, users * MEMBERS, MEMBERS)]
        asking = study.prepare(without_gold(data.test[: 2 * users]))[0][:users]
    if len(asking) < users or not all(groups):
        raise UserError(
            f"{study.backbone_id} can read {len(train)} train and {len(asking)} asking users, too "
            f"few to serve {users}; give fewer users or more data."
        )
    learned: list[tuple[list[PreferencePair], list[PreferencePair]]] = []
    served = []
    for number, (group, asks) in enumerate(zip(groups, asking, strict=True)):
        kept, identical = keep_different(study.pairs(group), study.settings)
        if not kept:
            raise UserError(
                f"{study.backbone_id}: the pairs of user {number + 1} are all identical, so "
                "nothing can be learned from them; give fewer users or another task."
            )
        learned.append((kept, identical))
        name = f"user {number + 1}"
        served.append(Served(name, asks, _own(study, group, kept, identical, name)))
    everybody = [user for group in groups for user in group]
    return Service(study, data, served, _pooled(study, everybody, learned))


def part(user: PreparedUser, start: int, stop: int | None) -> PreparedUser:
    """The user with some of the queries."""
    return replace(
        user,
        user=replace(user.user, queries=user.user.queries[start:stop]),
        query_insights=user.query_insights[start:stop],
    )


def _own(
    study: Study,
    group: Sequence[PreparedUser],
    kept: Sequence[PreferencePair],
    identical: Sequence[PreferencePair],
    name: str,
) -> EditProfile:
    contrasts = contrasts_from_pairs(study.task, kept, identical, study.settings)
    prompts = PlainPrompts(study.backbone, [contrast.prompt for contrast in contrasts])
    edit, log = stored_fit(study, contrasts, prompts, _SEED, name)
    fitted = FittedDirections(
        edit=edit,
        loss=log["loss"],
        held_out=[(int(step), float(loss)) for step, loss in log["held_out"]],
        **{key: log[key] for key in ("best_step", "n_pairs", "n_agreed", "n_held_out")},
    )
    return _profile(study, group, len(kept), len(identical), edit=edit, fitted=fitted)


def _pooled(
    study: Study,
    users: Sequence[PreparedUser],
    learned: Sequence[tuple[Sequence[PreferencePair], Sequence[PreferencePair]]],
) -> EditProfile:
    kept = [pair for some, _ in learned for pair in some]
    identical = sum(len(same) for _, same in learned)
    h_p, h_n = study.activations(kept)
    directions = stored_directions(study, "paper", h_p, h_n, _SEED)
    edit = directions.to_edit(study.settings)
    return _profile(study, users, len(kept), identical, edit=edit, directions=directions)


def _profile(
    study: Study, users: Sequence[PreparedUser], kept: int, identical: int, **made: Any
) -> EditProfile:
    backbone = study.backbone
    return EditProfile(
        task=study.task,
        settings=study.settings,
        backbone=(backbone.name, backbone.fingerprint),
        users=tuple(user.user.id for user in users),
        n_pairs=kept,
        n_identical=identical,
        revision=backbone.revision,
        prompts=prompts_digest(study.task, study.settings),
        **made,
    )
