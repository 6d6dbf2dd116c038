"""Edits are checked on users held out of their fit: junk is found out, a good fit passes."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.lens import logit_lens
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.checks import FitCheck, _interval, check_fit, guarded
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import PreferencePair, plain_prompt
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import User
from chameleon_lib.errors import UserError
from tests.core.method import SETTINGS as QUICK
from tests.core.method import train_users
from tests.demo.small import HashEmbedder, small_backbone

FITTED = QUICK.with_(
    theta_method="fitted", fit_rule="guarded", fit_loss="likelihood", check_edit="zero",
    fit_steps=20, fit_batch=16,
)  # fmt: skip
REFUSAL = "I'm sorry, but I can't assist with that."


@pytest.fixture(scope="module")
def backbone() -> HFBackbone:
    return small_backbone()


def rated(users: list[User], label: str) -> list[User]:
    """The users with the same label on everything: a shared edit can learn that."""
    return [
        replace(u, history=tuple(replace(item, label=label) for item in u.history)) for u in users
    ]


@pytest.fixture(scope="module")
def users() -> list[User]:
    return rated(train_users("LaMP_3", 15), "2")


def method(backbone: HFBackbone, **changes: object) -> Chameleon:
    return Chameleon(backbone, HashEmbedder(), FITTED.with_(**changes))


def junk(pairs: list[PreferencePair]) -> list[PreferencePair]:
    return [replace(pair, answer_p=REFUSAL, answer_n="2") for pair in pairs]


def test_a_fit_on_refusals_is_returned_with_strength_0(
    backbone: HFBackbone, users: list[User], caplog: pytest.LogCaptureFixture
) -> None:
    own = method(backbone)
    pairs = junk(own.source_pairs(users[:10]))
    with caplog.at_level(logging.WARNING):
        profile = own.fit_pairs(pairs, held_out=users[10:])
    check = profile.check
    assert check is not None and check.action == "zero" and not check.better
    assert check.gain < 0 and (check.users, check.texts) == (5, 15)
    assert not profile.edit.changes_anything
    # The fit itself saw nothing wrong: it learned what it was given.
    assert profile.fitted is not None and profile.fitted.best_step > 0
    assert profile.fitted.edit.changes_anything
    assert "returned with strength 0: not better than no edit on 15 texts of 5" in caplog.text
    prompts = ["What is it?"]
    assert backbone.generate(prompts, max_new_tokens=3, edit=profile.edit) == backbone.generate(
        prompts, max_new_tokens=3
    )


def test_a_fit_on_refusals_is_refused_or_kept_with_a_warning_where_settings_say_so(
    backbone: HFBackbone, users: list[User]
) -> None:
    pairs = junk(method(backbone).source_pairs(users[:10]))
    with pytest.raises(UserError, match="The edit is not better than no edit on 15 texts of 5 "):
        method(backbone, check_edit="refuse").fit_pairs(pairs, held_out=users[10:])
    kept = method(backbone, check_edit="warn").fit_pairs(pairs, held_out=users[10:])
    assert kept.check is not None and kept.check.action == "warned" and kept.check.warning
    assert kept.edit.changes_anything
    off = method(backbone, check_edit="off").fit_pairs(pairs, held_out=users[10:])
    assert off.check is None and torch.equal(off.edit.theta_p, kept.edit.theta_p)


def test_a_good_fit_passes(backbone: HFBackbone, users: list[User]) -> None:
    own = method(backbone, pairs_source="history")
    profile = own.fit(users[:9], held_out=users[9:])
    check = profile.check
    assert check is not None and check.action == "kept" and check.better and check.users == 6
    assert check.low > 0 and check.warning == "" and check.edit_ratio > 0 and check.kl > 0
    assert profile.edit.changes_anything
    assert profile.users == tuple(user.id for user in users[:9])
    with pytest.raises(UserError, match=f"{users[8].id} is both among the users of the fit and"):
        own.fit(users[:9], held_out=users[8:])
    assert "better than no edit on 18 texts of 6 held-out users" in check.sentence()


def test_a_fifth_of_the_users_is_held_out_of_everything(
    backbone: HFBackbone, users: list[User]
) -> None:
    profile = method(backbone, pairs_source="history", fit_steps=1).fit(users)
    assert profile.check is not None and profile.check.users == 3 and len(profile.users) == 12
    assert set(profile.users) < {user.id for user in users}


def test_few_users_are_checked_on_texts_that_their_fit_did_not_see(
    backbone: HFBackbone, users: list[User], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = method(backbone, pairs_source="history")
    texts: list[PreferencePair] = []
    whole = Chameleon._check

    def watched(self: Chameleon, edit: Edit, some: list[PreferencePair]) -> FitCheck:
        texts.extend(some)
        return whole(self, edit, some)

    monkeypatch.setattr(Chameleon, "_check", watched)
    profile = own.fit(users[:1])
    learned = {pair.query for pair in own.source_pairs(users[:1])}
    assert profile.check is not None and profile.check.users == 1 and len(texts) >= 2
    assert not learned & {pair.query for pair in texts}


def test_a_fit_that_cannot_be_checked_says_so(
    backbone: HFBackbone, users: list[User], caplog: pytest.LogCaptureFixture
) -> None:
    short = [replace(users[0], history=users[0].history[:3])]
    with caplog.at_level(logging.WARNING):
        profile = method(backbone, pairs_source="history").fit(short)
    assert profile.check is None and "The edit is not checked: 0 texts" in caplog.text


def test_the_check_measures_what_it_says(backbone: HFBackbone, users: list[User]) -> None:
    own = method(backbone)
    texts = own.history_pairs(users[:4])
    theta = torch.randn(2, 3, backbone.d, generator=torch.Generator().manual_seed(0))
    edit = Edit(layers=(0, 1, 2), theta_p=theta[0], theta_n=theta[1])
    check = check_fit(backbone, edit, texts, own.settings)
    prompts = [plain_prompt(pair, own.settings) for pair in texts]
    prepared, labels = backbone.prepare(prompts), [pair.answer_p for pair in texts]
    gains = backbone.score(prepared, labels, edit=edit, reduce="mean") - backbone.score(
        prepared, labels, reduce="mean"
    )
    means = [float(gains[at : at + 3].mean()) for at in range(0, 12, 3)]
    assert check.gain == pytest.approx(sum(means) / 4, abs=1e-5)
    assert check.low < check.gain < check.high
    assert FitCheck.of(json.loads(json.dumps(check.record()))) == check
    still = check_fit(backbone, edit.without_strength(), texts, own.settings)
    assert (still.gain, still.kl, still.moved, still.edit_ratio) == (0, 0, 0, 0)
    assert still.rates == still.plain == check.plain and not still.better
    with pytest.raises(UserError, match="two or more texts"):
        check_fit(backbone, edit, texts[:1], own.settings)


def test_the_interval_is_students() -> None:
    mean, low, high = _interval(torch.tensor([1.0, 2.0, 4.0]).double().numpy())
    half = pytest.approx(4.30265 * 1.527525 / 3**0.5, rel=1e-4)
    assert mean == pytest.approx(7 / 3) and high - mean == half and mean - low == half


@pytest.mark.parametrize("family", ["mistral", "t5"])
def test_the_divergence_is_that_of_next_token_distributions(family: str) -> None:
    backbone = small_backbone(family)
    theta = torch.randn(2, 3, backbone.d, generator=torch.Generator().manual_seed(0))
    edit = Edit(layers=(0, 1, 2), theta_p=theta[0], theta_n=theta[1])
    prompts, answers = ["What is it?", "And what is that, then?"], ["a good film", "5"]
    found = backbone.divergence(backbone.prepare(prompts), answers, edit=edit, tokens=2)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        start = backbone.codec.answers([answer])[0][:1]
        both = [
            [logit_lens(backbone, prompt, by, given)[-1] for by in (None, edit)]
            for given in ([], start)
        ]
        kl = [float((old.exp() * (old - new)).sum()) for old, new in both]
        moved = [int(old.argmax() != new.argmax()) for old, new in both]
        assert float(found[row, 0]) == pytest.approx(sum(kl) / 2, abs=1e-4) and kl[0] > 0
        assert float(found[row, 1]) == sum(moved) / 2


RATES = {"valid": 1.0, "empty": 0.0, "refusal": 0.0, "preamble": 0.0}
GOOD = FitCheck(4, 12, 0.2, 0.1, 0.3, RATES, RATES, 0.1, 0.1, 0.05)


@pytest.mark.parametrize(
    ("changes", "better", "warned"),
    [
        ({}, True, False),
        ({"low": -0.1}, True, True),  # not shown, and said
        ({"gain": -0.01, "low": -0.1}, False, True),
        ({"gain": 0.0}, False, True),
        ({"rates": {**RATES, "valid": 0.4, "empty": 0.6}}, False, True),  # silences the model
        ({"rates": {**RATES, "refusal": 0.5}}, False, True),
    ],
)
def test_what_counts_as_better(changes: dict[str, object], better: bool, warned: bool) -> None:
    check = replace(GOOD, **changes)  # type: ignore[arg-type]
    assert check.better == better and bool(check.warning) == warned
    theta = torch.eye(2, 4)
    edit = Edit(layers=(0, 1), theta_p=theta, theta_n=theta)
    passed, told = guarded(edit, check, EditSettings())
    assert passed.changes_anything == better and told.action == ("kept" if better else "zero")
