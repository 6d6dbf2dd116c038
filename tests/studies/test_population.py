from __future__ import annotations

import csv
import logging
from pathlib import Path

import numpy as np
import pytest

from chameleon_lib.cli import main
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import get_profile
from chameleon_lib.serving.population import Fitted
from chameleon_lib.serving.shards import REFUSED
from chameleon_lib.studies.own_users import TABLE
from chameleon_lib.studies.population import fit_settings, report_lines

NAMES = ("ada", "bruno", "hana", "goran")
QUICK = ["fit_steps=1", "check_edit=off", "pairs_items=4", "pairs_k_min=2", "fit_leash=0"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of the example's users; the last one is not among those who are fitted."""
    folder = tmp_path_factory.mktemp("table")
    rows = list(csv.reader(TABLE.open(encoding="utf-8")))
    for name, users in (("all", NAMES), ("fitted", NAMES[:3])):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([rows[0], *(row for row in rows[1:] if row[0] in users)])
    return folder


@pytest.mark.slow
def test_from_a_table_to_a_store_to_an_answer(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, report = tmp_path / "store", tmp_path / "report.csv"
    heard = logging.getLogger("chameleon_lib").level
    given = ["--csv", str(table / "fitted.csv"), "--task", "LaMP_2", "--queries", "4",
             "--store", str(store)]  # fmt: skip
    sets = [word for change in QUICK for word in ("--set", change)]
    assert main(["fit", *given, "--groups", "2", "--report", str(report), *sets]) == 0
    told = capsys.readouterr().out
    assert logging.getLogger("chameleon_lib").level == heard  # by whoever comes after the fit
    assert "fitted now: 3 users" in told and "n 3 users, 1 seed" in told
    lines = list(csv.DictReader(report.open(encoding="utf-8")))
    assert [line["user"] for line in lines] == list(dict.fromkeys(
        row["user"] for row in csv.DictReader((table / "fitted.csv").open()))
    )  # fmt: skip
    # Nothing is fitted twice, and other settings are another job.
    assert main(["fit", *given, "--groups", "2", *sets]) == 0
    assert "fitted now: 0 users" in capsys.readouterr().out
    assert main(["fit", *given, *sets[:-2], "--set", "fit_leash=0.5"]) == 2
    assert "fit_leash 0.0, not 0.5" in capsys.readouterr().err
    # Answers: of somebody fitted, and of somebody whom the store places by the history.
    asked = ["answer", "--csv", str(table / "all.csv"), *given[2:]]
    assert main([*asked, "--user", "ada"]) == 0
    assert "own edit of" in (told := capsys.readouterr().out) and "with edit: " in told
    assert main([*asked, "--user", "goran", "--query", "A bomb saves a riddle"]) == 0
    told = capsys.readouterr().out
    assert "holds nothing of this user; group-0" in told and "at distance" in told
    assert main([*asked, "--user", "ada", "--backbone", "demo:decoder:1"]) == 2
    assert "and demo:decoder:1" in capsys.readouterr().err


def test_settings_of_a_population_are_checked_by_name() -> None:
    profile = get_profile("demo-data")
    found = fit_settings(profile, ["fit_steps=3", "layers_rule=top_k", "layers_k=2"])
    assert (found.fit_steps, found.layers_rule, found.layers_k) == (3, "top_k", 2)
    with pytest.raises(UserError, match="NAME=VALUE"):
        fit_settings(profile, ["fit_steps"])
    with pytest.raises(UserError, match="no field 'steps'"):
        fit_settings(profile, ["steps=3"])


def test_the_report_counts_and_compares() -> None:
    done = Fitted(now=4, before=0, gains=np.array([0.1, 0.2, -0.1, 0.3]),
                  controls=np.array([0.0, np.nan, 0.1, 0.1]))  # fmt: skip
    done.states[REFUSED] = 1
    text = "\n".join(report_lines(done, []))
    assert "+0.125 [" in text and "n 4 users" in text and "n 3 users" in text
    assert "harmed (gain below 0): 25%" in text
    nobody = "\n".join(report_lines(Fitted(), []))
    assert "none has an answer" in nobody


def test_ray_stays_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                            capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    given = ["--csv", str(TABLE), "--task", "LaMP_2", "--store", str(tmp_path / "s")]
    assert main(["fit", *given, "--engine", "ray"]) == 2
    assert "--engine ray needs Ray Data: pip install 'ray[data]==2.60.*'." in (
        capsys.readouterr().err
    )
    assert main(["fit", *given, "--address", "auto"]) == 2
    assert "--engine ray" in capsys.readouterr().err
