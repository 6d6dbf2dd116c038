"""Verification finds every kind of difference, forgives only what it states, and names a reason."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit import verify
from chameleon_lib.kit.compare import compare_verdicts
from chameleon_lib.kit.facts import run_facts
from chameleon_lib.kit.verify import Tolerances, compare, likely_reason, main, report

TABLE = (
    "profile,method,metric,value,ci_low,ci_high,n,seeds\n"
    "demo,plain,accuracy,0.4,0.35,0.45,200,3\n"
    "demo,edit,accuracy,0.5,0.45,0.55,200,3\n"
    "demo,edit,margin,1.5,1.45,1.55,200,3\n"
    "demo,edit,cosine,0.25,0.2,0.3,200,3\n"
)
FACTS = {"threads": 2, "python": "3.11.7", "versions": {"torch": "2.13.0"}, "cpu": {"flags": []}}


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
        ("accuracy,0.4,", "accuracy,0.419,", None),
        ("accuracy,0.4,", "accuracy,0.43,", "value"),
        ("margin,1.5,", "margin,1.54,", None),
        ("margin,1.5,", "margin,1.56,", "value"),
        ("cosine,0.25,", "cosine,0.2500001,", None),
        ("cosine,0.25,", "cosine,0.251,", "value"),
        ("0.55,200,3", "0.55,199,3", "n"),
        ("0.55,200,3", "0.55,200,2", "seeds"),
        ("accuracy,0.4,", "accuracy,,", "value"),
        ("accuracy,0.4,", "accuracy,nan,", "value"),
    ],
)
def test_each_class_of_number_has_its_own_tolerance(
    committed: Path, tmp_path: Path, old: str, new: str, column: str | None
) -> None:
    found = compare(committed, outputs(tmp_path / "fresh", TABLE.replace(old, new, 1)))
    assert [d.column for d in found] == ([] if column is None else [column])


def test_a_wide_table_is_classed_by_its_column_names(committed: Path, tmp_path: Path) -> None:
    wide = "method,accuracy,rouge1_low,ccs_loss,changed_count,b\nedit,0.5,0.3,0.1,7,1\n"
    outputs(committed, wide)
    near = wide.replace("0.5,0.3,0.1,7,1", "0.51,0.31,0.14,7,1")
    assert compare(committed, outputs(tmp_path / "near", near)) == []
    far = wide.replace("0.5,0.3,0.1,7,1", "0.53,0.33,0.16,7,2")
    found = compare(committed, outputs(tmp_path / "far", far))
    assert [d.column for d in found] == ["accuracy", "rouge1_low", "ccs_loss", "b"]


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


def test_tighter_tolerances_can_be_asked_for(committed: Path, tmp_path: Path) -> None:
    fresh = outputs(tmp_path / "fresh", TABLE.replace("accuracy,0.4,", "accuracy,0.401,"))
    assert compare(committed, fresh, Tolerances(score=1e-6))


def test_a_folder_without_tables_cannot_pass(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tables"):
        compare(tmp_path, tmp_path)
    assert main(["--against", str(tmp_path), "--fresh", str(tmp_path)]) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threads": 4}, "thread count (2 → 4)"),
        ({"versions": {"torch": "2.14.0"}}, "torch version (2.13.0 → 2.14.0)"),
        ({"cpu": {"flags": ["avx512f"]}}, "CPU flags (none → avx512f)"),
        ({"environment_sha256": "a" * 64}, f"environment.yml (None → {'a' * 12})"),
        ({"backbones": ["demo:decoder:0"]}, "backbones (None → demo:decoder:0)"),
        ({}, "the code changed"),
    ],
)
def test_the_likely_reason_is_what_the_facts_say(
    committed: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    fresh = outputs(tmp_path / "fresh", facts={**FACTS, **change})
    assert words in likely_reason(committed, fresh)


def test_every_fact_of_a_run_is_compared(tmp_path: Path) -> None:
    facts = run_facts("demo", {"users": "abc"})
    committed = outputs(tmp_path / "committed", facts=facts)
    for name, value in facts.items():
        other = {"changed": "x"} if isinstance(value, dict) else ["x"]
        if name == "cpu":
            other = {**value, "machine": "x"}
        fresh = outputs(tmp_path / "fresh", facts={**facts, name: other})
        reason = likely_reason(committed, fresh)
        assert "code changed" not in reason and "unknown" not in reason, name


def test_missing_facts_are_not_blamed_on_the_code(committed: Path, tmp_path: Path) -> None:
    fresh = outputs(tmp_path / "fresh")
    (fresh / "run_facts.json").unlink()
    assert "unknown" in likely_reason(committed, fresh)


def test_a_changed_verdict_is_a_difference(tmp_path: Path) -> None:
    def write(name: str, status: str, low: float) -> Path:
        ours = {"value": 0.2, "low": low, "high": 0.3, "n": 200, "seeds": 3}
        row = dict(words="c", section="4", notebook="01", paper="", ours=ours, status=status,
                   n=200, seeds=3, scorer="", csv="", note="", split="", own=False,
                   setting="", measure="")  # fmt: skip
        folder = tmp_path / name / "verdicts"
        folder.mkdir(parents=True)
        (folder / "01.json").write_text(json.dumps({"profile": "demo", "verdicts": [row]}))
        return folder.parent

    old, new = write("a", "reproduced", 0.01), write("b", "not reproduced", -0.01)
    found = compare_verdicts(old, new, "demo")
    assert [(d.row, d.committed, d.fresh) for d in found] == [("c", "reproduced", "not reproduced")]
    assert compare_verdicts(old, old, "demo") == []


def test_the_command_prints_each_cell_and_ends_with_one(
    committed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = outputs(tmp_path / "fresh", TABLE.replace("accuracy,0.4,", "accuracy,0.9,"))
    arguments = ["--against", str(committed), "--fresh"]
    assert main([*arguments, str(committed)]) == 0
    assert "1 tables agree" in capsys.readouterr().out
    assert main([*arguments, str(fresh)]) == 1
    shown = capsys.readouterr().out
    assert "tables/a.csv" in shown and "demo, plain, accuracy" in shown and "0.9" in shown
    assert "likely reason: the code changed" in shown


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
    assert main(["--against", str(committed)]) == 0
    assert not Path(calls[0]["CHAMELEON_OUTPUTS"]).is_relative_to(committed)
    assert not Path(calls[0]["CHAMELEON_CACHE"]).exists()


def test_a_failed_run_is_no_agreement(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed: subprocess.CompletedProcess[str] = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(verify.subprocess, "run", lambda *_, **__: failed)
    assert main(["--against", str(committed)]) == 2


def test_the_report_lines_up_and_marks_exact_cells(committed: Path, tmp_path: Path) -> None:
    fresh = outputs(tmp_path / "fresh", TABLE.replace("0.55,200,3", "0.55,199,3"))
    text = report(compare(committed, fresh), "because")
    assert "exact" in text and text.endswith("likely reason: because")
