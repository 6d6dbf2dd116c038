"""One batch for all users, and the control: another user's edit."""

from __future__ import annotations

import pytest

from chameleon_lib.sections.serving import answers
from chameleon_lib.sections.serving.answers import Row
from chameleon_lib.sections.serving.study import POOLED, Service
from tests.sections.serving.conftest import USERS


def test_one_query_goes_to_every_user_under_every_edit(
    services: list[Service], batches: list[list[Row]]
) -> None:
    for service, rows in zip(services, batches, strict=True):
        query = service.served[0].asks.user.queries[0].text
        assert len(rows) == 3 * USERS and all(query in row.prompt for row in rows)
        assert len({row.prompt for row in rows}) == USERS  # each with a history of its own
        assert [row.profile for row in rows[:3]] == [None, "user 1", POOLED]


def test_one_batch_gives_what_single_runs_give(
    services: list[Service], batches: list[list[Row]]
) -> None:
    for service, rows in zip(services, batches, strict=True):
        together, alone = answers.together(service, rows), answers.alone(service, rows)
        assert together == alone
        assert together[::3] != together[1::3]  # the edits do something
        table = answers.batch_table(service, rows, {"batch": together, "alone": alone})
        assert table["equal answers"].tolist() == [3 * USERS]
        shown = answers.answer_table(service, rows, together)
        assert shown["own edit"].tolist() == together[1::3]
        assert shown[answers.UNEDITED].tolist() == together[::3]


def test_an_answer_that_differs_is_counted(
    services: list[Service], batches: list[list[Row]]
) -> None:
    said = answers.together(services[0], batches[0])
    spoiled = ["another text", *said[1:]]
    table = answers.batch_table(services[0], batches[0], {"batch": said, "alone": spoiled})
    assert table["equal answers"].tolist() == [3 * USERS - 1]


def test_the_control_asks_under_every_other_users_edit(
    services: list[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = services[0]
    owner = {id(user.profile.edit): user.name for user in service.served}

    def say(_service: Service, prompts: list[str], edit: object) -> list[str]:
        # The first user's edit differs from the others', which all say the same.
        name = owner.get(id(edit), "base")
        return ["first" if name == "user 1" else name[:4]] * len(prompts)

    monkeypatch.setattr(answers, "_say", say)
    found = answers.whose_edit(service)
    assert found["held-out queries"] == 2 * USERS and found["changed by the own edit"] == 1
    # Of six ordered pairs of users, the two among users 2 and 3 agree.
    assert found["another user's edit says the same"] == pytest.approx(2 / 6)
    assert found["right: own edit"] == found["right: no edit"] == 0
