"""Verification finds every kind of difference, forgives only what it states, and names a reason."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths, verify
from chameleon_lib.kit.facts import run_facts
from chameleon_lib.kit.stats import Estimate
from chameleon_lib.kit.verdicts import Verdict, save_verdicts
from chameleon_lib.kit.verify import (
    compare,
    compare_line,
    compare_verdicts,
    likely_reason,
    verify_run,
)

TABLE = (
    "profile,method,metric,value,ci_low,ci_high,n,seeds\n"
    "demo,plain,accuracy,0.4,0.35,0.45,200,3\n"
    "demo,edit,accuracy,0.5,0.45,0.55,200,3\n"
    "demo,edit,margin,1.5,1.45,1.55,200,3\n"
    "demo,edit,cosine,0.25,0.2,0.3,200,3\n"
)
FACTS = {"threads": 2, "python": "3.11", "versions": {"torch": "2.13.0"}}


def outputs(folder: Path, table: str = TABLE, facts: dict[str, Any] | None = None) -> Path:
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    (folder / "tables" / "a.csv").write_text(table)
    (folder / "run_facts.json").write_text(json.dumps(FACTS if facts is None else facts))
    return folder


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    return outputs(tmp_path / "committed")


def test_the_same_tables_have_no_difference(committed: Path, tmp_path: Path) -> None:
    assert compare(committed, outputs(tmp_path / "fresh")) == []


@pytest.mark.parametrize(
    ("old", "new", "column"),
    [
        ("accuracy,0.4,", "accuracy,0.412,", None),  # a quarter of half the interval
        ("accuracy,0.4,", "accuracy,0.413,", "value"),
        ("0.35,0.45,200,3", "0.35,0.439,200,3", None),
        ("0.35,0.45,200,3", "0.35,0.436,200,3", "ci_high"),
        ("0.55,200,3", "0.55,199,3", "n"),
        ("0.55,200,3", "0.55,200,2", "seeds"),
        ("accuracy,0.4,", "accuracy,,", "value"),
        ("accuracy,0.4,", "accuracy,nan,", "value"),
    ],
)
def test_a_number_may_differ_by_a_part_of_its_interval(
    committed: Path, tmp_path: Path, old: str, new: str, column: str | None
) -> None:
    found = compare(committed, outputs(tmp_path / "fresh", TABLE.replace(old, new, 1)))
    assert [d.column for d in found] == ([] if column is None else [column])


def test_without_an_interval_two_answers_or_the_last_digit_may_differ(
    committed: Path, tmp_path: Path
) -> None:
    table = "method,share,loss,flops,count,n\nedit,0.5,0.1,12345.5,7,100\n"
    outputs(committed, table)
    near = table.replace("0.5,0.1,12345.5", "0.52,0.12,12346.5")
    assert compare(committed, outputs(tmp_path / "near", near)) == []
    far = table.replace("0.5,0.1,12345.5,7", "0.521,0.121,12348.5,8")
    found = compare(committed, outputs(tmp_path / "far", far))
    assert [d.column for d in found] == ["share", "loss", "flops", "count"]


def test_missing_and_extra_rows_columns_and_files_are_named(
    committed: Path, tmp_path: Path
) -> None:
    lines = TABLE.splitlines()
    fresh = outputs(tmp_path / "fresh", "\n".join([*lines[:-1], "demo,new,cosine,1,1,1,1,1"]))
    (fresh / "tables" / "b.csv").write_text("x\n1\n")
    found = {(d.file, d.row, d.committed, d.fresh) for d in compare(committed, fresh)}
    assert found == {
        ("tables/b.csv", "", "missing", "present"),
        ("tables/a.csv", "demo, edit, cosine", "present", "missing"),
        ("tables/a.csv", "demo, new, cosine", "missing", "present"),
    }
    dropped = "\n".join(line.rsplit(",", 1)[0] for line in lines)
    found_columns = compare(committed, outputs(tmp_path / "narrow", dropped))
    assert [(d.column, d.fresh) for d in found_columns] == [("seeds", "missing")]


def test_the_order_of_rows_does_not_matter_but_repeated_rows_do(
    committed: Path, tmp_path: Path
) -> None:
    head, *rows = TABLE.splitlines()
    turned = "\n".join([head, *reversed(rows)])
    assert compare(committed, outputs(tmp_path / "turned", turned)) == []
    twice = compare(committed, outputs(tmp_path / "twice", TABLE + rows[-1] + "\n"))
    assert [d.row for d in twice] == ["demo, edit, cosine #2"]


def test_a_folder_without_tables_cannot_pass(committed: Path, tmp_path: Path) -> None:
    for one, other in ((tmp_path, committed), (committed, tmp_path), (tmp_path, tmp_path)):
        with pytest.raises(UserError, match="no tables"):
            verify_run("demo", one, other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threads": 4}, "threads (2 → 4)"),
        ({"versions": {"torch": "2.14.0"}}, "versions torch (2.13.0 → 2.14.0)"),
        ({"environment_sha256": "a" * 64}, f"environment_sha256 (None → {'a' * 12})"),
        ({"backbones": ["demo:decoder:0"]}, "backbones (None → demo:decoder:0)"),
        ({}, "the code or the machine changed"),
    ],
)
def test_the_likely_reason_is_what_the_facts_say(
    committed: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    fresh = outputs(tmp_path / "fresh", facts={**FACTS, **change})
    assert words in likely_reason(committed, fresh)


def test_machines_are_compared_where_both_are_known(committed: Path, tmp_path: Path) -> None:
    fresh = outputs(tmp_path / "fresh")
    for folder, python in ((committed, "3.11.2"), (fresh, "3.11.7")):
        (folder / "measured").mkdir()
        (folder / "measured" / "machine.json").write_text(json.dumps({"python": python}))
    assert likely_reason(committed, fresh) == "python (3.11.2 → 3.11.7)"


def test_every_fact_of_a_run_is_compared(tmp_path: Path) -> None:
    facts = run_facts("demo", {"users": "abc"})
    committed = outputs(tmp_path / "committed", facts=facts)
    for name, value in facts.items():
        other = {"changed": "x"} if isinstance(value, dict) else ["x"]
        fresh = outputs(tmp_path / "fresh", facts={**facts, name: other})
        reason = likely_reason(committed, fresh)
        assert "the code" not in reason and "unknown" not in reason, name
    (fresh / "run_facts.json").unlink()
    assert "unknown" in likely_reason(committed, fresh)


def test_a_changed_verdict_is_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(name: str, status: str, low: float) -> Path:
        monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path / name))
        ours = Estimate(0.2, low, 0.3, 200, 3)
        save_verdicts([Verdict("c", "4", "01", "", ours, status, 200, 3, "", "")], "01", "demo")
        return tmp_path / name / "demo"

    old, new = write("a", "reproduced", 0.01), write("b", "not reproduced", -0.01)
    found = compare_verdicts(old, new, "demo")
    assert [(d.row, d.committed, d.fresh) for d in found] == [("c", "reproduced", "not reproduced")]
    assert compare_verdicts(old, old, "demo") == []


def test_the_command_prints_each_cell_and_ends_with_one(
    committed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = outputs(tmp_path / "fresh", TABLE.replace("accuracy,0.4,", "accuracy,0.9,"))
    assert verify_run("demo", committed, committed) == 0
    assert "1 tables agree" in capsys.readouterr().out
    assert verify_run("demo", committed, fresh) == 1
    shown = capsys.readouterr().out
    assert "tables/a.csv" in shown and "demo, plain, accuracy" in shown and "0.9" in shown
    assert "exact" not in shown and "likely reason: the code or the machine" in shown


def test_without_a_fresh_folder_the_profile_is_run_apart_from_the_checkout(
    committed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:] == ["-m", "chameleon_lib", "run", "--profile", "demo"]
        calls.append(options["env"])
        outputs(Path(options["env"]["CHAMELEON_OUTPUTS"]) / "demo")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(verify.subprocess, "run", run)
    assert verify_run("demo", committed) == 0
    assert not Path(calls[0]["CHAMELEON_OUTPUTS"]).is_relative_to(committed)
    assert not Path(calls[0]["CHAMELEON_CACHE"]).exists()


def test_a_failed_run_is_no_agreement(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed: subprocess.CompletedProcess[str] = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(verify.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match="exit status 1"):
        verify_run("demo", committed)


def test_one_line_says_how_a_run_compares_with_the_last_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    monkeypatch.delenv("CHAMELEON_OUTPUTS", raising=False)
    folder = outputs(tmp_path / "outputs" / "demo")
    assert compare_line("demo") == "No committed run of profile demo to compare with."
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "a run")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert compare_line("demo") == (
        "Identical to the committed run: 1 tables and figures; no verdict changed."
    )
    outputs(folder, TABLE.replace("accuracy,0.4,", "accuracy,0.401,"))
    line = compare_line("demo")
    assert line.startswith("1 of 1 tables and figures differ from the committed run; largest")
    assert "1 in the last digit (0.4 → 0.401, value, tables/a.csv)" in line
    assert "cells beyond the tolerances: 0; no verdict changed" in line
    outputs(folder, TABLE.replace("accuracy,0.4,", "accuracy,0.9,"))
    line = compare_line("demo")
    assert "500 in the last digit" in line and "cells beyond the tolerances: 1" in line
    assert "the code or the machine changed" in line and "\n" not in line
