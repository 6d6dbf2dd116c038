"""Saving figures: PNG, SVG, the CSV behind them, alt text and caption, all byte-stable.

Plots are drawn by `chameleon_lib.kit.plots` from frames and re-exported here, so that a notebook
imports one module.
"""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.csvtext import check_id, to_csv
from chameleon_lib.kit.plots import dot_ci, layer_loss_plot, line_ci, pca_scatter
from chameleon_lib.kit.style import style

__all__ = [
    "FigureOutput",
    "dot_ci",
    "layer_loss_plot",
    "line_ci",
    "pca_scatter",
    "save_figure",
    "show_figure",
    "style",
    "titles",
]

_SCALE = 2  # PNG pixels per CSS pixel


class FigureOutput:
    """What a notebook cell shows: the PNG with its alt text, caption and size as metadata."""

    def __init__(self, png: bytes, metadata: dict[str, Any]) -> None:
        self.png = png
        self.metadata = metadata

    def __repr__(self) -> str:
        return str(self.metadata["alt"])

    def _repr_mimebundle_(
        self,
        include: object = None,  # noqa: ARG002  IPython's signature
        exclude: object = None,  # noqa: ARG002
    ) -> tuple[dict[str, str], dict[str, Any]]:
        encoded = base64.b64encode(self.png).decode("ascii")
        data = {"image/png": encoded, "text/plain": str(self.metadata["alt"])}
        return data, {"image/png": self.metadata}


def titles(fig: Figure) -> list[str]:
    """Return the suptitle and every title of a figure's axes."""
    found = [fig.get_suptitle()]
    for axes in fig.axes:
        found += [axes.get_title(loc="left"), axes.get_title(), axes.get_title(loc="right")]
    return [text for text in found if text]


def save_figure(
    fig: Figure, figure_id: str, *, alt: str, caption: str, data: pd.DataFrame, profile: str
) -> FigureOutput:
    """Write <figure_id>.png (2x), .svg, .csv and .json to the figures folder of a profile.

    Args:
        fig: the figure; its title must name the profile.
        figure_id: file stem; figures appear on the index page in the order of their ids.
        alt: what is seen (trend, extremes), for a reader who cannot see it.
        caption: what it means, with n, seeds and profile.
        data: the frame the figure was drawn from.
        profile: run profile.

    Returns:
        An object to leave as the last expression of a cell, or to pass to `display`.
    """
    check_id(figure_id)
    if not any(profile.casefold() in text.casefold() for text in titles(fig)):
        raise UserError(
            f"Figure {figure_id}: no title names the profile {profile!r}; its numbers could be "
            "taken for another profile's."
        )
    if len(alt.strip()) < 20:
        raise UserError(f"Figure {figure_id}: the alt text must say what is seen, got {alt!r}.")
    if not caption.strip() or caption.strip() == alt.strip():
        raise UserError(f"Figure {figure_id}: the caption must say what it means, beyond the alt.")
    if data.empty:
        raise UserError(f"Figure {figure_id}: the frame behind it has no rows.")
    folder = paths.figures_dir(profile)
    # Versions and dates in the metadata would change the bytes without changing the picture.
    with style():
        png = few_colours(_render(fig, "png", {"Software": None}))
        svg = _render(fig, "svg", {"Date": None, "Creator": None})
    width, height = (int(size) for size in png_size(png))
    side = {
        "alt": alt.strip(),
        "caption": caption.strip(),
        "width": width // _SCALE,
        "height": height // _SCALE,
    }
    paths.replace_bytes(folder / f"{figure_id}.png", png)
    paths.replace_bytes(folder / f"{figure_id}.svg", svg)
    paths.replace_text(folder / f"{figure_id}.csv", to_csv(data))
    record = {"id": figure_id, "profile": profile, **side}
    paths.replace_text(
        folder / f"{figure_id}.json",
        json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n",
    )
    return FigureOutput(png, side)


def show_figure(fig: Figure, *, alt: str, caption: str) -> FigureOutput:
    """A figure to look at in an Explore cell: shown like the others, kept nowhere.

    Args:
        fig: the figure.
        alt: what is seen.
        caption: what it means.
    """
    with style():
        png = few_colours(_render(fig, "png", {"Software": None}))
    width, height = (size // _SCALE for size in png_size(png))
    return FigureOutput(png, {"alt": alt, "caption": caption, "width": width, "height": height})


def _render(fig: Figure, kind: str, metadata: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    # A fixed canvas instead of a tight box: layout is constrained, sizes are then exact.
    fig.savefig(buffer, format=kind, dpi=_SCALE * fig.dpi if kind == "png" else 72.0,
                metadata=metadata)  # fmt: skip
    return buffer.getvalue()


def few_colours(png: bytes) -> bytes:
    """The same picture with a palette of 256 colours: a third of the bytes, nothing to be seen.

    Notebooks and pages carry every figure inside, so its bytes count three times.
    """
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def png_size(png: bytes) -> tuple[int, int]:
    """Return (width, height) in pixels, read from the header of a PNG."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
