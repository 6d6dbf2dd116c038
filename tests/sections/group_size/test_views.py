from __future__ import annotations

import json
from pathlib import Path

import pytest

from chameleon_lib.sections.group_size.ladder import OWN
from chameleon_lib.sections.group_size.tables import agreement, curve, title_of
from chameleon_lib.sections.group_size.views import (
    agreement_figure,
    curve_figure,
    curve_lines,
    families_of,
    summary,
)
from chameleon_lib.sections.results import FAMILY_TITLES, Run
from tests.sections.group_size.planted_sizes import CONDITIONS, planted_sizes

GAIN = {
    OWN: {"chameleon": 0.6},
    "20 users": {"chameleon": 0.7, "fitted": 0.7},
    "100 users": {"chameleon": 0.8, "fitted": 0.9},
}
DECODER = FAMILY_TITLES["decoder"]


@pytest.fixture(scope="module")
def run() -> Run:
    return planted_sizes(GAIN, tasks=("LaMP_2",))


def test_the_curve_has_one_line_per_method_and_one_point_for_lent_directions(run: Run) -> None:
    lines = curve_lines(curve(run, "LaMP_2"), "accuracy", DECODER)
    points = lines.groupby("line", sort=False)["users"].apply(list).to_dict()
    assert points == {
        "paper": [1, 20, 100],
        "fitted (ours)": [20, 100],
        "random directions": [1, 20, 100],
        "one other user's": [1],
    }
    own = lines[lines["line"] == "paper"]["value"].to_list()
    assert own == pytest.approx([0.2, 0.3, 0.4])


def test_figures_name_profile_users_sets_and_what_size_one_means(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    shown = curve_figure(curve(run, "LaMP_2"), "LaMP_2", DECODER, "demo").metadata
    assert "120 test users" in shown["caption"] and "2 nested random sets" in shown["caption"]
    assert "demo profile" in shown["caption"] and "the very query" in shown["caption"]
    assert "paper: +0.200 at 1, +0.300 at 20, +0.400 at 100" in shown["alt"]
    agreed = agreement_figure(agreement(run, "LaMP_2"), "LaMP_2", DECODER, "demo").metadata
    assert "demo profile" in agreed["caption"] and "share 55% of their users" in agreed["caption"]
    assert "from 1 to 100" in agreed["alt"] and "θP" in agreed["alt"] and "θN" in agreed["alt"]
    names = {path.name for path in (tmp_path / "demo" / "figures").glob("*.json")}
    assert names == {"03_size_LaMP_2_decoder.json", "03_agreement_LaMP_2_decoder.json"}
    record = json.loads((tmp_path / "demo" / "figures" / "03_size_LaMP_2_decoder.json").read_text())
    assert record["profile"] == "demo"


def test_a_figure_without_single_users_says_nothing_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    groups = {name: size for name, size in CONDITIONS.items() if size > 1}
    run = planted_sizes(GAIN, conditions=groups, tasks=("LaMP_2",))
    shown = curve_figure(curve(run, "LaMP_2"), "LaMP_2", DECODER, "demo").metadata
    assert "At 1 user" not in shown["caption"] and "at 1," not in shown["alt"]
    assert "from 20 to 100" in agreement_figure(
        agreement(run, "LaMP_2"), "LaMP_2", DECODER, "demo"
    ).metadata["alt"]


@pytest.mark.parametrize(
    ("task", "gain"), [("LaMP_2", "+0.200"), ("LaMP_3", "-0.")]
)
def test_the_summary_says_what_helps_and_what_share_one_user_has(task: str, gain: str) -> None:
    run = planted_sizes(GAIN, tasks=(task,))
    said = summary(run, {task: curve(run, task)}, {task: agreement(run, task)})
    assert families_of(run) == [DECODER]
    assert f"{title_of('chameleon')}: helps at 1 ({gain}" in said and "helps at 100" in said
    assert "of the gain at 1)" in said and "θP of own user has cosine 0.01" in said
    assert "between two draws of 100 users θP has 0.55 and θN 0.55" in said


def test_the_summary_of_nothing_or_of_harm_names_no_share() -> None:
    null = planted_sizes(tasks=("LaMP_2",))
    said = summary(null, {"LaMP_2": curve(null, "LaMP_2")},
                   {"LaMP_2": agreement(null, "LaMP_2")})  # fmt: skip
    assert ": no effect shown at 1" in said and "of the gain" not in said
    harm = planted_sizes({name: {"instruct": 0.9} for name in CONDITIONS}, tasks=("LaMP_2",))
    said = summary(harm, {"LaMP_2": curve(harm, "LaMP_2")},
                   {"LaMP_2": agreement(harm, "LaMP_2")})  # fmt: skip
    assert "hurts at 100" in said and "of the gain" not in said


def test_few_test_users_get_numbers_and_no_word() -> None:
    run = planted_sizes(GAIN, tasks=("LaMP_2",), n_users=60)
    said = summary(run, {"LaMP_2": curve(run, "LaMP_2")}, {"LaMP_2": agreement(run, "LaMP_2")})
    assert f"{title_of('chameleon')}: +0.200 [+0." in said and "] at 1, " in said
    assert not any(word in said for word in ("helps", "hurts", "effect", "of the gain"))
