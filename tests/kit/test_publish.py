"""One call saves and shows, and what is saved names the code that made it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.figures import dot_ci
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import Estimate, mcnemar
from chameleon_lib.kit.tables import estimate_columns
from chameleon_lib.kit.verdicts import Verdict, load_verdicts

EFFECT = Estimate(0.2, 0.1, 0.3, 200, 3)
FRAME = pd.DataFrame([{"control": "random", **estimate_columns(EFFECT)}])
MADE_BY = {"notebook": "01_per_user", "made_by": "chameleon_lib.kit.stats:mcnemar"}
publish = Publisher("demo", "01_per_user")


@pytest.fixture(autouse=True)
def _outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))


def side(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_table_is_saved_with_its_maker_and_shown_with_its_profile() -> None:
    shown = publish(FRAME, "t", "Effects", kind="control", made_by=mcnemar).data
    assert "<caption>Effects (demo profile)</caption>" in shown and "0.200 [0.100" in shown
    found = side(paths.tables_dir("demo") / "t.json")
    assert MADE_BY.items() <= found.items() and found["caption"] == "Effects"


def test_a_figure_and_verdicts_name_their_makers_too() -> None:
    drawn = dot_ci(FRAME, title="Effect", profile="demo", xlabel="nats", row="control")
    publish.figure(drawn, "01", alt="One dot to the right of zero.", caption="It helps.",
                   data=FRAME, made_by=mcnemar)  # fmt: skip
    assert MADE_BY.items() <= side(paths.figures_dir("demo") / "01.json").items()
    verdict = Verdict("it helps", "4.2", "01_per_user", "+0.1", EFFECT, "direction only", 200, 3,
                      "accuracy", "tables/t.csv", task="LaMP-2", model="decoder")  # fmt: skip
    shown = publish.verdicts([verdict], made_by=mcnemar).data
    assert "Verdicts (demo profile)" in shown and "LaMP-2, decoder: it helps" in shown
    assert load_verdicts("demo") == [verdict]
    assert side(paths.verdicts_dir("demo") / "01_per_user.json")["made_by"] == MADE_BY["made_by"]


@pytest.mark.parametrize("nameless", [lambda: None, partial(mcnemar, [1])])
def test_what_no_page_could_find_is_refused_before_anything_is_written(nameless: Any) -> None:
    with pytest.raises(UserError, match="made_by wants a named function"):
        publish(FRAME, "t", "Effects", made_by=nameless)
    assert not paths.tables_dir("demo").exists()
