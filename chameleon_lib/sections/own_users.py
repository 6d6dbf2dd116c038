"""Users of one's own table: import, one fit, and one user's query before and after the edit.

The steps are those of the quickstart (sections 3.1 to 3.3); only where the users come from and who
fits for whom is decided here. A table has no planted truth: the user's answer is a held-out row
where there is one, and what the model itself says under the user's insight where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.lamp.data import find_split, load_users
from chameleon_lib.lamp.import_report import ImportReport
from chameleon_lib.lamp.importing import SPLIT, ImportOptions, read_table, write_import
from chameleon_lib.lamp.records import Query, User
from chameleon_lib.lamp.tasks import official_input
from chameleon_lib.lamp.users import check_disjoint, split_users_by_hash
from chameleon_lib.sections.answering import Reference
from chameleon_lib.sections.data import SALT, TaskData
from chameleon_lib.sections.loading import settings_for
from chameleon_lib.sections.quickstart import Tour, before_and_after, tour_of
from chameleon_lib.sections.study import Study

HALVES = {"train": 0.5, "test": 0.5}
ASKED = "asked"  # id of a query that stands in no file


@dataclass(frozen=True)
class Asked:
    """One user's query, with what its answers are compared by.

    Attributes:
        tour: The fit and the prepared user, whose one query this is.
        reference: The user's answer and the generic one.
        compared: What the margin compares, in words.
    """

    tour: Tour
    reference: Reference
    compared: str

    def group(self) -> str:
        """Whose pairs the fit saw, with their number, for a sentence."""
        members = {pair.user_id for pair in self.tour.pairs}
        return f"a group of {len(members)} of the {len(self.tour.data.everyone) - 1} other users"

    def table(self) -> pd.DataFrame:
        """The query with and without edit, with and without the insight in the prompt."""
        return before_and_after(self.tour, self.reference)


def imported(table: Path, task: str, options: ImportOptions) -> tuple[ImportReport, Path]:
    """Import a table into the kit's cache folder.

    Returns:
        The report, and the folder that ``data_dir`` of every notebook takes.
    """
    report = read_table(table, task, options)
    key = digest([report.sha256, task, repr(options)])[:16]
    folder = paths.cache_dir() / "imported" / key
    write_import(report, folder)
    return report, folder


def load_own(data_dir: Path, task: str) -> list[User]:
    """All users of a folder, with the golds that it has."""
    return load_users(*find_split(data_dir, task, SPLIT), task)


def find_user(users: list[User], user_id: str) -> User:
    """The user of that name; the first user for an empty name.

    Raises:
        UserError: There is none; the sentence names some who are there.
    """
    found = next((user for user in users if user.id == user_id or not user_id), None)
    if found is None:
        names = ", ".join(user.id for user in users[:5])
        raise UserError(
            f"There is no user {user_id!r} among {len(users)} users ({names}"
            f"{', …' if len(users) > 5 else ''}); see the import report for who was dropped."
        )
    return found


def everyone_else(profile: RunProfile, users: list[User], user: User) -> TaskData:
    """One user asks, and the fit draws its group from all others, up to the profile's number."""
    others = [other for other in users if other.id != user.id]
    return _data(profile, users, others, [user])


def halves(profile: RunProfile, users: list[User], user: User) -> TaskData:
    """The fit draws its group from one half; the other is scored, the given user among it.

    Both halves are cut to the profile's numbers.
    """
    parts = split_users_by_hash(users, HALVES, SALT)
    train = [other for other in parts["train"] if other.id != user.id]
    test = [user, *(other for other in parts["test"] if other.id != user.id)]
    return _data(profile, users, train, test)


def _data(
    profile: RunProfile, users: list[User], train: list[User], test: list[User]
) -> TaskData:
    if not train:
        raise UserError(
            f"Only {len(users)} user is there, and the fit needs others than the one who asks; "
            "import a table with more users."
        )
    fit, scored = train[: profile.n_train], test[: profile.n_test]
    check_disjoint(fit, scored)
    return TaskData(
        users[0].task,
        tuple(fit),
        (),
        tuple(scored),
        tuple(users),
        None,
        f"of {len(users)} users of the table the fit may draw on {len(fit)}; scored: {len(scored)} "
        "others",
        digest([fit, scored]),
        imported=True,
    )


def ask(
    profile: RunProfile, backbone_id: str, data: TaskData, user: User, text: str = ""
) -> Asked:
    """Answer one query of one user, personalised by an edit that other users' pairs gave.

    Args:
        profile: Run profile.
        backbone_id: Backbone.
        data: Its train users fit.
        user: None of the train users.
        text: The query; empty for the user's first held-out one.

    Raises:
        UserError: No query, a user who fits no context, or not one pair to fit on.
    """
    query = user.queries[0]
    if text:
        query = Query(ASKED, text, official_input(user.task, text), None)
    study = Study(profile, backbone_id, user.task, settings_for(profile))
    tour = tour_of(study, data, replace(user, queries=(query,)))
    (pair,) = study.pairs([tour.user])
    if query.gold is not None:
        personal, whose = query.gold, "the user's own held-out answer"
    else:
        personal, whose = pair.answer_p, "the model's answer under the user's insight"
    reference = Reference([personal], [pair.answer_n])
    return Asked(tour, reference, f"{whose} minus that of its answer under the neutral insight")
