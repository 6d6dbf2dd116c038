"""Verdict records survive a round trip and cannot contradict their own numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.stats import HOLDS, REPRODUCED, Estimate
from chameleon_lib.kit.verdicts import Verdict, load_verdicts, save_verdicts


@pytest.fixture(autouse=True)
def _outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))


def good() -> Verdict:
    ours = Estimate(0.2, 0.1, 0.3, 200, 3)
    return Verdict(
        "The edit helps", "4.2", "01_per_user", "+0.198", ours, "reproduced", 200, 3,
        "accuracy (LaMP evaluator)", "tables/01.csv",
    )  # fmt: skip


def not_run() -> Verdict:
    return replace(good(), ours=None, status="not run at this scale", n=0, seeds=0)


def test_verdicts_come_back_in_order_of_notebook_and_saving() -> None:
    later = replace(good(), notebook="02_unseen_users", words="Unseen users gain")
    save_verdicts([later], "02_unseen_users", "demo")
    save_verdicts([good(), not_run()], "01_per_user", "demo")
    assert load_verdicts("demo") == [good(), not_run(), later]


def test_saving_twice_gives_the_same_bytes() -> None:
    noisy = replace(good(), ours=Estimate(0.2 + 1e-13, 0.1, 0.3, 200, 3))
    first = save_verdicts([good()], "01_per_user", "demo").read_bytes()
    assert save_verdicts([noisy], "01_per_user", "demo").read_bytes() == first


@pytest.mark.parametrize(
    "change",
    [
        {"status": "great"},
        {"status": "not run at this scale"},
        {"n": 150},
        {"ours": Estimate(0.2, -0.1, 0.3, 200, 3)},
        {"ours": Estimate(0.2, 0.1, 0.3, 50, 3), "n": 50},
        {"ours": None},
    ],
)
def test_a_verdict_that_contradicts_its_numbers_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UserError):
        replace(good(), **change)  # type: ignore[arg-type]


def test_a_verdict_of_another_notebook_is_refused() -> None:
    with pytest.raises(UserError, match="01_per_user"):
        save_verdicts([good()], "02_unseen_users", "demo")


def test_a_demo_record_cannot_enter_another_profile() -> None:
    source = save_verdicts([good()], "01_per_user", "demo")
    paths.replace_bytes(paths.verdicts_dir("paper") / source.name, source.read_bytes())
    with pytest.raises(UserError, match="demo"):
        load_verdicts("paper")


def test_unknown_keys_and_broken_files_are_named() -> None:
    path = save_verdicts([good()], "01_per_user", "demo")
    record = json.loads(path.read_text())
    record["verdicts"][0]["acuracy"] = 0.0
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="acuracy"):
        load_verdicts("demo")
    path.write_text("{")
    with pytest.raises(UserError, match="01_per_user.json"):
        load_verdicts("demo")


@pytest.mark.parametrize(("own", "status"), [(True, REPRODUCED), (False, HOLDS)])
def test_a_word_for_the_other_kind_of_claim_is_refused(own: bool, status: str) -> None:
    with pytest.raises(UserError, match="no word for a claim"):
        replace(good(), own=own, status=status)
