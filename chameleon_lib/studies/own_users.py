"""Users of one's own table: import, one fit, and one user's query before and after the edit.

The steps are those of the quickstart (sections 3.1 to 3.3); only where the users come from and who
fits for whom is decided here. A table has no planted truth: the user's answer is a held-out row
where there is one, and what the model itself says under the user's insight where there is none.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers.utils import logging as transformers_logging

from chameleon_lib.core.backbone import Backbone
from chameleon_lib.core.task import Query, User, get_task, official_input
from chameleon_lib.data.importing import (
    SPLIT,
    ImportOptions,
    ImportReport,
    read_table,
    write_import,
)
from chameleon_lib.data.kinds import normal_id
from chameleon_lib.data.lamp import find_split
from chameleon_lib.data.metrics import higher_is_better, sample_scores, without_tokens
from chameleon_lib.data.users import SALT, check_disjoint, load_users, split_users_by_hash
from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.profiles import RunProfile, get_profile
from chameleon_lib.kit.stats import bootstrap_mean, effect_word
from chameleon_lib.kit.tables import estimate_columns, part_columns
from chameleon_lib.studies.arms import Exam, Reference, reference_answers
from chameleon_lib.studies.data import TaskData, without_gold
from chameleon_lib.studies.forms import form_of
from chameleon_lib.studies.quickstart import Tour, before_and_after, open_study, tour_of

TABLE = Path(__file__).with_name("example_users.csv")  # invented users, which ship with the kit
_INDENT = "    "
HALVES = {"train": 0.5, "test": 0.5}
ASKED = "asked"  # id of a query that stands in no file


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
    for sentence in report.understood():
        print(f"{_INDENT}{sentence}")
    # Through files, as with a folder, so that both ways give the same users.
    with tempfile.TemporaryDirectory(prefix="chameleon-import-") as folder:
        write_import(report, Path(folder))
        return load_own(Path(folder), task)


def find_user(users: list[User], user_id: str) -> User:
    """The user of that name; the first user for an empty name.

    Raises:
        UserError: There is none; the sentence names some who are there.
    """
    user_id = str(user_id)  # papermill's own command line makes a number of 12345
    wanted = (user_id, normal_id(user_id))
    found = next((user for user in users if user.id in wanted or not user_id), None)
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


def _data(profile: RunProfile, users: list[User], train: list[User], test: list[User]) -> TaskData:
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


def ask(profile: RunProfile, backbone_id: str, data: TaskData, user: User, text: str = "") -> Tour:
    """Open one query of one user, to be personalised by an edit that other users' pairs gave.

    ``data`` are users of whom the train users fit, and the user is none of them; an empty ``text``
    stands for the user's first held-out query.

    Raises:
        UserError: No query, a user who fits no context, or not one pair to fit on.
    """
    query = user.queries[0]
    if text:
        query = Query(ASKED, text, official_input(user.task, text), None)
    study = open_study(profile, backbone_id, user.task)
    tour = tour_of(study, data, [replace(user, queries=(query,))], reference=Reference([], []))
    (pair,) = study.pairs(tour.users)
    personal, whose = pair.answer_p, "the model's answer under the user's insight"
    if query.gold is not None:
        personal, whose = query.gold, "the user's own held-out answer"
    compared = f"{whose} minus that of its answer under the neutral insight"
    return replace(tour, reference=Reference([personal], [pair.answer_n]), compared=compared)


def control_marks(backbone: Backbone, texts: Sequence[str]) -> list[str]:
    """Every control token of the backbone that the texts spell; it reads them as text."""
    codec = getattr(backbone, "codec", None)  # a counting backbone hands it on
    return [] if codec is None else [mark for text in texts for mark in codec.marks(text)]


def group_of(tour: Tour) -> str:
    """Whose pairs the fit saw, with their number, for a sentence."""
    members = {pair.user_id for pair in tour.case.pairs}
    return f"a group of {len(members)} of the {len(tour.data.everyone) - 1} other users"


def answer_lines(
    profile_name: str, users: list[User], user_id: str, query: str, backbone_id: str = ""
) -> Iterator[str]:
    """One user's query answered, as lines for a terminal, from the history to the answers.

    Who does not ask fits. Empty texts stand for the first user, the user's first held-out row, and
    the profile's first studied backbone.
    """
    profile = get_profile(profile_name, [backbone_id] if backbone_id else [])
    asking = find_user(users, user_id)
    data = everyone_else(profile, users, asking)
    yield profile.banner
    torch.set_num_threads(profile.threads)
    transformers_logging.disable_progress_bar()
    backbone = profile.studied[0]
    items = [len(other.history) for other in (*data.train, asking)]
    yield f"reading {sum(items)} history items of {len(items)} users, at most {max(items)} of one"
    tour = ask(profile, backbone, data, asking, query)
    user, case = tour.user, tour.case
    yield ""
    yield f"user {user.user.id} ({tour.study.task}), backbone {backbone}"
    yield f"query: {user.user.queries[0].text}"
    yield f"history: {len(user.items)} of {len(user.user.history)} items are shown to the model"
    if user.dropped_items:
        yield f"{_INDENT}{user.dropped_items} chosen items are too long to stand beside the others"
    if user.cut_items:
        words = tour.study.settings.prompts_item_words
        yield f"{_INDENT}{user.cut_items} of them are cut to {words} words (prompts_item_words)"
    for item in user.items:
        yield f"{_INDENT}- {item.text}" + (f" -> {item.label}" if item.label else "")
    texts = [user.user.queries[0].text, *(item.text for item in user.items)]
    marks = control_marks(tour.study.backbone, texts)
    if marks:
        spelt = ", ".join(f"{mark!r}" for mark in dict.fromkeys(marks))
        yield f"control tokens of the model in these texts, read as text: {len(marks)} ({spelt})"
    yield f"insight: {user.insight_p}"
    yield f"neutral insight: {user.insight_n}"
    yield f"pairs: {len(case.pairs)} of {group_of(tour)}, {len(case.kept)} with different answers"
    yield f"edited layers: {', '.join(map(str, case.layers))} (paper), all (fitted)"
    yield f"margin: log-probability of {tour.compared}, in nats; none where both are the same text"
    yield ""
    table = before_and_after(tour)[["prompt and edit", "margin (nats)", "answer"]]
    width = max(map(len, table["prompt and edit"]))
    for name, margin, answer in table.itertuples(index=False):
        yield f"{name:<{width}}  {'  same' if math.isnan(margin) else f'{margin:+6.2f}'}  {answer}"


def mute(tour: Tour) -> str:
    """Say that some golds of the scored users score 0 whatever is answered; empty for none."""
    golds = [str(query.gold) for user in tour.data.test for query in user.queries]
    return without_tokens(get_task(tour.study.task), golds)


def held_out(tour: Tour, metric: str = "") -> pd.DataFrame:
    """All held-out queries of the scored users with and without the edits.

    Args:
        tour: A user's tour.
        metric: Score per sample; empty for the first of the task. ``rouge1_unicode`` knows all
            scripts and is not official.

    Returns:
        One row per arm: score and margin with their change over Instruct, 95 % intervals over
        users; of free text the form; ``n`` users, those of them who have a margin, ``queries``.
    """
    study, task = tour.study, tour.study.task
    test = study.prepare(without_gold(tour.data.test)).users
    golds = tour.data.golds({user.user.id for user in test})
    owners = [user.user.id for user in test for _ in user.user.queries]
    score = metric or get_task(task).measures[0].of
    rows: list[dict[str, Any]] = []
    base: pd.DataFrame | None = None
    asked = Exam(study, test, reference_answers(study, tour.data, test)).answer(tour.arms())
    for name, answers in asked.items():
        form = form_of(task, golds, answers.texts, score)
        values = {
            "score": sample_scores(task, score, golds, answers.texts),
            "margin": answers.margin,
            **form,
        }
        # Means of every user's queries; NaN for who has no margin.
        found = pd.DataFrame(values).groupby(owners, sort=False).mean()
        base = found if base is None else base
        change = estimate_columns(bootstrap_mean(found["score"], base["score"]), f"{score}_change")
        known = found["margin"].notna()
        moved = None
        if known.any():
            moved = bootstrap_mean(found["margin"][known], base["margin"][known])
        rows.append(
            {
                "prompt and edit": name,
                score: float(found["score"].mean()),
                **{key: value for key, value in change.items() if key not in ("n", "seeds")},
                **{name: float(found[name].mean()) for name in form},
                "margin": float(found["margin"].mean()),
                **part_columns(moved, "margin_change"),
                "queries": len(golds),
                "n": len(test),
                "seeds": 1,
            }
        )
    return pd.DataFrame(rows)


def effects(found: pd.DataFrame, task: str, metric: str = "") -> list[str]:
    """What every row of :func:`held_out` shows against Instruct: empty with too few users."""
    score = metric or get_task(task).measures[0].of
    ends = found[[f"{score}_change_low", f"{score}_change_high", "n"]]
    up = higher_is_better(score)
    words = [effect_word(*row, higher_is_better=up) for row in ends.itertuples(index=False)]
    return ["", *words[1:]]
