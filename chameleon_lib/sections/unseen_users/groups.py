"""Groups of train users for unseen test users, and the refusal of any leak between the two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chameleon_lib.core.preferences import PreferencePair, PreparedUser
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.records import User
from chameleon_lib.lamp.users import check_disjoint
from chameleon_lib.sections.arms import draw_group
from chameleon_lib.sections.data import TaskData, without_gold
from chameleon_lib.sections.per_user.cell import with_gold
from chameleon_lib.sections.study import Study

Group = tuple[int, list[PreparedUser], list[PreferencePair]]


def groups(study: Study, data: TaskData, draws: Sequence[int]) -> Iterator[Group]:
    """Per draw its number, the users with gold answers, and their unfiltered pairs.

    Raises:
        UserError: A test user, or a text of one, is among them.
    """
    train, _ = study.prepare(without_gold(data.train))
    pairs = study.pairs(train)
    for index in draws:
        group = with_gold(draw_group(train, study.settings.group_size, index), data.train)
        ids = {user.user.id for user in group}
        own = [pair for pair in pairs if pair.user_id in ids]
        refuse_leaks(group, own, data)
        yield index, group, own


def refuse_leaks(
    group: Sequence[PreparedUser], pairs: Sequence[PreferencePair], data: TaskData
) -> None:
    """Refuse a fit or training that a test user, or a text of one, would reach.

    Everything that edits, ALOE and DPO learn from is in ``group`` and ``pairs``. In real files two
    people may tag one film or write the same words, so there whole histories decide who is who. In
    the embedded world no text may be shared; only the short posts of two histories can come out
    the same.

    Raises:
        UserError: The sentence names the test user.
    """
    fitted = {user.user.id for user in group} | {pair.user_id for pair in pairs}
    for user in data.test:
        if user.id in fitted:
            raise UserError(f"Test user {user.id!r} would reach a fit; take another group.")
    check_disjoint([user.user for user in group], data.test)
    if data.truth is None:
        return
    seen = {text for user in group for text in (*_asked(user.user), *_written(user.user))}
    seen |= {text for p in pairs for text in (p.query, *(item.text for item in p.items))}
    for user in data.test:
        own = _asked(user) if data.task == "LaMP_7" else [*_asked(user), *_written(user)]
        if not seen.isdisjoint(own):
            raise UserError(f"A text of test user {user.id!r} would reach a fit; split them again.")


def _asked(user: User) -> list[str]:
    return [query.text for query in user.queries]


def _written(user: User) -> list[str]:
    return [item.text for item in user.history]
