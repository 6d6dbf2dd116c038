"""The verdict table of the README is generated, and drift is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit import cli, paths
from chameleon_lib.kit.readme import BEGIN, END, FIGURE, PLANS, main, plans, rewritten, table
from chameleon_lib.kit.stats import Estimate
from chameleon_lib.kit.verdicts import Verdict, save_verdicts

DRAWN = f"{FIGURE[0]}\nNo demo run has been recorded yet.\n{FIGURE[1]}\n"
PLANNED = f"{DRAWN}{PLANS[0]}\n{plans()}\n{PLANS[1]}\n"
AROUND = f"# Title\n\nbefore\n\n{BEGIN}\nold text\n{END}\n\nafter\n{PLANNED}"


def good() -> Verdict:
    ours = Estimate(-0.2, -0.3, -0.1, 200, 6)
    return Verdict(
        "The edit helps (mae change)", "4.2", "01_per_user", "-0.090 (0.497 → 0.407)", ours,
        "reproduced", 200, 6, "mae", "tables/01.csv",
    )  # fmt: skip


def not_run() -> Verdict:
    claim = "Unseen | users\ngain"
    return replace(good(), words=claim, ours=None, status="not run at this scale", n=0, seeds=0)


@pytest.fixture
def readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a README and the verdicts of one notebook."""
    monkeypatch.delenv("CHAMELEON_OUTPUTS", raising=False)
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    path = tmp_path / "README.md"
    path.write_text(AROUND, encoding="utf-8")
    save_verdicts([good(), not_run()], "01_per_user", "demo")
    return path


def test_the_block_is_regenerated_and_nothing_around_it_changes(readme: Path) -> None:
    assert main([]) == 0
    assert readme.read_text(encoding="utf-8") == (
        f"# Title\n\nbefore\n\n{BEGIN}\n"
        "| notebook | claims of | claims | reproduced | not run at this scale |\n"
        "| --- | --- | --: | --: | --: |\n"
        "| 01_per_user | the paper | 2 | 1 | 1 |\n\n"
        "The claims of `01_per_user`, one by one:\n\n"
        "| claim | paper | ours [95 % CI] | n | seeds | verdict |\n"
        "|---|---|---|--:|--:|---|\n"
        "| The edit helps (mae change) | -0.090 (0.497 → 0.407) | −0.200 [−0.300, −0.100] "
        "| 200 | 6 | reproduced |\n"
        "| Unseen \\| users gain | -0.090 (0.497 → 0.407) | not run | – | – "
        "| not run at this scale |\n"
        f"{END}\n\nafter\n{PLANNED}"
    )
    assert [path.name for path in readme.parent.iterdir() if path.is_file()] == ["README.md"]


def test_writing_twice_changes_nothing(readme: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    first = readme.read_bytes()
    assert main([]) == 0 and readme.read_bytes() == first
    assert "README.md holds the verdicts of outputs/demo/verdicts" in capsys.readouterr().out


def test_check_finds_drift_in_one_sentence_and_writes_nothing(
    readme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([])
    assert main(["--check"]) == 0
    save_verdicts(
        [replace(good(), ours=Estimate(-0.1, -0.2, -0.05, 200, 6))], "01_per_user", "demo"
    )
    before = readme.read_bytes()
    capsys.readouterr()
    assert main(["--check"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert captured.err.startswith("README.md and outputs/demo/verdicts differ;")
    assert readme.read_bytes() == before


def test_a_readme_edited_by_hand_is_drift_too(readme: Path) -> None:
    main([])
    text = readme.read_text(encoding="utf-8").replace("−0.200", "−0.900")
    readme.write_text(text, encoding="utf-8")
    assert main(["--check"]) == 1


@pytest.mark.parametrize(
    "text",
    [
        "no marker",
        f"{BEGIN} only the first",
        f"only the second {END}",
        f"{END} {BEGIN}",
        f"{BEGIN} {END} {BEGIN} {END}",
    ],
)
def test_missing_markers_are_one_sentence(
    readme: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    readme.write_text(text, encoding="utf-8")
    assert cli.main(["readme"]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"README.md must hold '{BEGIN}' and then '{END}', once each.\n"
    assert readme.read_text(encoding="utf-8") == text


def test_a_plan_edited_by_hand_is_drift_of_the_plans(
    readme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([])
    text = readme.read_text(encoding="utf-8").replace("Downloads: none", "Downloads: some")
    readme.write_text(text, encoding="utf-8")
    capsys.readouterr()
    assert main(["--check"]) == 1
    assert capsys.readouterr().err.startswith("README.md and the plans differ;")
    assert main([]) == 0 and main(["--check"]) == 0


def test_the_figure_comes_with_the_words_of_its_sidecar(
    readme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    side = paths.figures_dir("demo") / "06_directions_LaMP_2.json"
    paths.replace_text(side, '{"alt": "Dots [95 %]\\nof two", "caption": "Few users."}')
    assert main(["--check"]) == 1
    assert main([]) == 0 and main(["--check"]) == 0
    text = readme.read_text(encoding="utf-8")
    picture = "![Dots (95 %) of two](outputs/demo/figures/06_directions_LaMP_2.png)"
    assert f"{FIGURE[0]}\n{picture}\n\nFew users.\n{FIGURE[1]}" in text
    paths.replace_text(side, '{"alt": "Dots", "caption": "More users."}')
    capsys.readouterr()
    assert main(["--check"]) == 1
    assert "README.md and figure 06_directions_LaMP_2 differ;" in capsys.readouterr().err
    paths.replace_text(side, "{}")
    with pytest.raises(UserError, match="cannot be read"):
        main([])


def test_a_missing_readme_is_one_sentence(readme: Path) -> None:
    readme.unlink()
    with pytest.raises(UserError, match="README.md cannot be read"):
        main(["--check"])


def test_without_a_run_the_block_says_so() -> None:
    assert table([]) == "No demo run has been recorded yet."
    before = AROUND.count("No demo run has been recorded yet.")  # the figure's
    assert rewritten(AROUND, []).count("No demo run has been recorded yet.") == before + 1
