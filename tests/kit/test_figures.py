"""Figures carry profile, alt and caption, come back byte for byte, and draw what the frame says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.figures import (
    dot_ci,
    layer_loss_plot,
    line_ci,
    pca_scatter,
    save_figure,
    titles,
)

ALT = "Two dots; the edit lies right of the plain arm."
CAPTION = "Accuracy of 200 users, 3 seeds, demo profile."


@pytest.fixture(autouse=True)
def _outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "method": ["plain", "edit"] * 2,
            "task": ["LaMP-2"] * 2 + ["LaMP-3"] * 2,
            "x": [1, 10, 1, 10],
            "value": [0.3, 0.5, 0.4, 0.45],
            "ci_low": [0.25, 0.45, 0.35, 0.4],
            "ci_high": [0.35, 0.55, 0.45, 0.5],
        }
    )


def dots(better: str = "higher") -> Figure:
    return dot_ci(
        frame(), title="Accuracy", profile="demo", xlabel="accuracy", panel="task",
        reference=0.3, reference_label="majority", better=better,  # type: ignore[arg-type]
    )  # fmt: skip


def lines() -> Figure:
    return line_ci(
        frame(), title="Size", profile="demo", x="x", xlabel="users", ylabel="MAE", group="task",
        better="lower", logx=True, reference=0.3, reference_label="unedited",
    )  # fmt: skip


def layers() -> Figure:
    loss = pd.DataFrame(
        {"layer": [1, 0], "loss": [0.1, 0.15], "shuffled_loss": [0.2, 0.19], "edited": [True, 0]}
    )
    return layer_loss_plot(loss, title="CCS loss", profile="demo", floor=0.2)


def scatter() -> Figure:
    items = pd.DataFrame({"pc1": [0.0, 1, 2], "pc2": [0.0, 1, 2], "selected": [False, True, True]})
    return pca_scatter(items.assign(w="a"), title="History", profile="demo", label="w")


def test_a_figure_is_saved_in_four_files_with_its_size() -> None:
    save_figure(dots(), "01", alt=ALT, caption=CAPTION, data=frame(), profile="demo")
    folder = paths.figures_dir("demo")
    assert sorted(p.name for p in folder.iterdir()) == ["01.csv", "01.json", "01.png", "01.svg"]
    side = json.loads((folder / "01.json").read_text())
    png = (folder / "01.png").read_bytes()
    assert int.from_bytes(png[16:20], "big") in (2 * side["width"], 2 * side["width"] + 1)
    assert side["alt"] == ALT and side["caption"] == CAPTION


@pytest.mark.parametrize("draw", [dots, lines, layers, scatter])
def test_drawing_twice_gives_the_same_bytes(draw: Callable[[], Figure]) -> None:
    def files() -> dict[str, bytes]:
        save_figure(draw(), "f", alt=ALT, caption=CAPTION, data=frame(), profile="demo")
        return {p.name: p.read_bytes() for p in paths.figures_dir("demo").iterdir()}

    first = files()
    assert files() == first
    assert b"dc:date" not in first["f.svg"] and b"Software" not in first["f.png"]


def test_a_figure_whose_title_hides_the_profile_is_refused() -> None:
    fig = dots()
    fig.suptitle("Accuracy")
    with pytest.raises(UserError, match="demo"):
        save_figure(fig, "01", alt=ALT, caption=CAPTION, data=frame(), profile="demo")
    with pytest.raises(UserError, match="paper"):
        save_figure(dots(), "01", alt=ALT, caption=CAPTION, data=frame(), profile="paper")
    assert not paths.figures_dir("demo").exists()


@pytest.mark.parametrize(
    ("alt", "caption"), [("", CAPTION), ("plot", CAPTION), (ALT, ""), (ALT, ALT)]
)
def test_alt_and_caption_must_say_something_of_their_own(alt: str, caption: str) -> None:
    with pytest.raises(UserError, match="alt"):
        save_figure(dots(), "01", alt=alt, caption=caption, data=frame(), profile="demo")


def test_the_notebook_output_carries_alt_and_caption_as_metadata() -> None:
    shown = save_figure(dots(), "01", alt=ALT, caption=CAPTION, data=frame(), profile="demo")
    data, metadata = shown._repr_mimebundle_()
    assert data["text/plain"] == ALT and repr(shown) == ALT
    assert metadata["image/png"]["alt"] == ALT
    assert metadata["image/png"]["caption"] == CAPTION
    assert not data["image/png"].startswith("b'")


def test_dots_stand_where_the_frame_says_and_the_arrow_names_the_better_side() -> None:
    axes = dots().axes
    assert [ax.get_title(loc="left") for ax in axes] == ["LaMP-2", "LaMP-3"]
    drawn = [line for line in axes[0].lines if line.get_marker() == "o"][0]
    assert np.allclose(drawn.get_xdata(), [0.3, 0.5])
    assert "→ better" in axes[0].get_xlabel()
    assert "← better" in dots("lower").axes[0].get_xlabel()
    assert any("demo profile" in text for text in titles(dots()))


def test_a_frame_without_the_needed_columns_is_named() -> None:
    with pytest.raises(UserError, match="ci_low"):
        dot_ci(frame().drop(columns="ci_low"), title="t", profile="demo", xlabel="x")
    with pytest.raises(UserError, match="0 rows"):
        dot_ci(frame().iloc[:0], title="t", profile="demo", xlabel="x")
