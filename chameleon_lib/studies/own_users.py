"""Users of one's own table: import, one fit, and one user's query before and after the edit.

The steps are those of the quickstart (sections 3.1 to 3.3); only where the users come from and who
fits for whom is decided here. A table has no planted truth: the user's answer is a held-out row
where there is one, and what the model itself says under the user's insight where there is none.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers.utils import logging as transformers_logging

from chameleon_lib.core.task import Query, User, get_task, official_input
from chameleon_lib.data.importing import (
    SPLIT,
    ImportOptions,
    ImportReport,
    read_table,
    write_import,
)
from chameleon_lib.data.lamp import SALT, find_split, load_users
from chameleon_lib.data.metrics import higher_is_better, per_sample_scores
from chameleon_lib.data.users import check_disjoint, split_users_by_hash
from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.profiles import RunProfile, get_profile
from chameleon_lib.kit.stats import MIN_USERS, Estimate, bootstrap_mean, effect_word
from chameleon_lib.kit.tables import estimate_columns, part_columns
from chameleon_lib.studies.answering import Exam, Reference
from chameleon_lib.studies.data import TaskData, without_gold
from chameleon_lib.studies.loading import settings_for
from chameleon_lib.studies.quickstart import Tour, before_and_after, tour_of
from chameleon_lib.studies.scoring import reference_answers
from chameleon_lib.studies.study import Study

TABLE = Path(__file__).with_name("example_users.csv")  # invented users, which ship with the kit
_INDENT = "    "
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
    name = get_task(task).name
    return load_users(*find_split(data_dir, name, SPLIT), name)


def table_users(table: Path, task: str, options: ImportOptions) -> list[User]:
    """All users of a table; prints who was kept, and why rows were dropped."""
    report = read_table(table, task, options)
    print(report.kept())
    for row in report.summary():
        print(f"{_INDENT}{row['reason']}: {row['rows']} rows, first {row['first']}")
    # Through files, as with a folder, so that both ways give the same users.
    with tempfile.TemporaryDirectory(prefix="chameleon-import-") as folder:
        write_import(report, Path(folder))
        return load_own(Path(folder), task)


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


def answer_lines(
    profile_name: str, users: list[User], user_id: str, query: str, backbone_id: str = ""
) -> Iterator[str]:
    """One user's query answered, as lines for a terminal.

    Args:
        profile_name: Run profile.
        users: All users; those who do not ask fit.
        user_id: Who asks; empty for the first user.
        query: What is asked; empty for the first held-out row.
        backbone_id: Backbone; empty for the profile's first.
    """
    profile = get_profile(profile_name)
    user = find_user(users, user_id)
    data = everyone_else(profile, users, user)
    yield profile.banner
    torch.set_num_threads(profile.threads)
    transformers_logging.disable_progress_bar()
    backbone = backbone_id or profile.studied[0]
    yield from _lines(ask(profile, backbone, data, user, query), backbone)


def _lines(asked: Asked, backbone: str) -> list[str]:
    """What the command prints, from the history to the answers."""
    tour = asked.tour
    user = tour.user
    lines = [
        "",
        f"user {user.user.id} ({tour.study.task}), backbone {backbone}",
        f"query: {user.user.queries[0].text}",
        f"history: {len(user.items)} of {len(user.user.history)} items are shown to the model",
    ]
    for item in user.items:
        lines.append(f"{_INDENT}- {item.text}" + (f" -> {item.label}" if item.label else ""))
    lines += [
        f"insight: {user.insight_p}",
        f"neutral insight: {user.insight_n}",
        f"pairs: {len(tour.pairs)} of {asked.group()}, {len(tour.kept)} with different answers "
        "fit the edit",
        f"edited layers: {', '.join(map(str, tour.layers))} of {tour.study.backbone.n_layers} "
        "(paper), all of them (fitted)",
        f"margin: log-probability of {asked.compared}, in nats",
        "",
    ]
    table = asked.table()
    width = max(map(len, table["prompt and edit"]))
    for name, answer, margin in zip(
        table["prompt and edit"], table["answer"], table["margin (nats)"], strict=True
    ):
        shown = "  same" if math.isnan(margin) else f"{margin:+6.2f}"
        lines.append(f"{name:<{width}}  {shown}  {answer}")
    if table["margin (nats)"].isna().all():
        lines.append("The two answers are the same text, so there is no margin.")
    return lines


def held_out(tour: Tour) -> pd.DataFrame:
    """All held-out queries of the scored users with and without the edits.

    Returns:
        One row per arm: score and margin with their change over Instruct, 95 % intervals over
        users; ``n`` users, those of them who have a margin, ``queries``.
    """
    study, task = tour.study, tour.study.task
    test, _ = study.prepare(without_gold(tour.data.test))
    names = {user.user.id for user in test}
    golds = [str(q.gold) for user in tour.data.test if user.id in names for q in user.queries]
    owners = np.repeat(np.arange(len(test)), [len(user.user.queries) for user in test])
    reference = reference_answers(study, tour.data, test)
    arms = {
        "Instruct": ("instruct", None),
        "Instruct + edit (paper)": ("instruct", tour.edit),
        "Instruct + fitted edit (ours)": ("instruct", tour.fitted),
        "insight in the prompt": ("insight", None),
    }
    score = get_task(task).measures[0].of
    rows = []
    found = Exam(study, test, reference).answer(arms)
    levels = {
        name: (_by_user(per_sample_scores(task, golds, answers.texts)[score], owners),
               _by_user(answers.margin, owners))
        for name, answers in found.items()
    }  # fmt: skip
    base = levels["Instruct"]
    for name, (scores, margins) in levels.items():
        known = np.isfinite(margins)
        rows.append(
            {
                "prompt and edit": name,
                score: float(scores.mean()),
                **_columns(f"{score}_change", bootstrap_mean(scores, base[0])),
                "margin": float(margins[known].mean()) if known.any() else float("nan"),
                **part_columns(
                    bootstrap_mean(margins[known], base[1][known]) if known.any() else None,
                    "margin_change",
                ),
                "queries": len(golds),
                "n": len(test),
                "seeds": 1,
            }
        )
    return pd.DataFrame(rows)


def _columns(name: str, estimate: Estimate) -> dict[str, float | int]:
    columns = estimate_columns(estimate, name)
    return {key: value for key, value in columns.items() if key not in ("n", "seeds")}


def _by_user(values: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Mean of each user's defined values (users,); NaN where a user has none."""
    known = np.isfinite(values)
    counts = np.bincount(owners, weights=known, minlength=owners.max() + 1)
    sums = np.bincount(owners, weights=np.where(known, values, 0.0), minlength=owners.max() + 1)
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def conclusion(found: pd.DataFrame, task: str) -> list[str]:
    """What may be concluded from `held_out`, in sentences computed from it."""
    score = get_task(task).measures[0].of
    table = found.set_index("prompt and edit")
    n = int(found["n"].iloc[0])
    sentences = []
    for name in list(table.index)[1:]:
        row = table.loc[name]
        low, high = row[f"{score}_change_low"], row[f"{score}_change_high"]
        word = effect_word(low, high, n, higher_is_better=higher_is_better(score))
        sentences.append(
            f"{name}: {score} {row[score]:.3f}, {row[f'{score}_change']:+.3f} "
            f"[{low:+.3f}, {high:+.3f}] against Instruct{f': {word}' if word else ''}."
        )
    sentences.append(
        f"These are {n} users"
        + (
            f", fewer than the {MIN_USERS} that the kit asks for, so this is a look and no verdict."
            if n < MIN_USERS
            else "; notebook 01 with --data measures the same with controls and gives verdicts."
        )
    )
    return sentences
