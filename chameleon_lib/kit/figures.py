"""Figures: one style, four plots of frames, and saving them so that a re-run gives the same bytes.

A plot takes a frame and a few words and computes nothing; a saved figure is a PNG, an SVG, the CSV
behind it, its alt text and its caption. What is drawn are the numbers of the CSV, rounded as there.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from chameleon_lib.errors import UserError
from chameleon_lib.kit import digits, paths
from chameleon_lib.kit.tables import check_id, made, to_csv

Better = Literal["higher", "lower"]

#: matplotlib's petroff10, spelled out so that a later matplotlib cannot change our pictures.
COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*")
LINES = ("-", "--", "-.", ":")
INK = "#26292e"
MUTED = "#6b7079"
GRID = "#e3e5e8"

#: Typed loosely, since matplotlib's own stubs list every key as a literal.
STYLE: Any = {
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.prop_cycle": cycler(color=list(COLOURS)),
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "chameleon-kit",
    "pdf.fonttype": 42,
}


@contextmanager
def style() -> Iterator[None]:
    """Apply the kit's one style; saving needs it as well as drawing (the SVG salt)."""
    with mpl.rc_context(STYLE):
        yield


_LETTERS_PER_INCH = 15  # of a legend at 9 points
_INTERVAL = ["value", "ci_low", "ci_high"]


def _need(df: pd.DataFrame, columns: list[str]) -> None:
    missing = [column for column in columns if column not in df.columns]
    if missing or df.empty:
        raise UserError(f"The frame to plot has {len(df)} rows and lacks columns {missing}.")


def _heading(fig: Figure, title: str, profile: str) -> None:
    # The profile is part of the title, so that a copied figure cannot pass for the paper's.
    text = f"{title} · {profile} profile"
    fig.suptitle(text, x=0.01, ha="left", fontsize=12, fontweight="bold", wrap=True)


@contextmanager
def _one_panel(title: str, profile: str, height: float = 4.2) -> Iterator[tuple[Figure, Axes]]:
    """A styled figure of one panel; its title and its legend are added at the end."""
    with style():
        fig = Figure(figsize=(6.8, height))
        ax = fig.subplots()
        yield fig, ax
        _heading(fig, title, profile)
        _legend_below(fig, ax)


def dot_ci(
    df: pd.DataFrame,
    *,
    title: str,
    profile: str,
    xlabel: str,
    row: str = "method",
    method: str | None = None,
    panel: str | None = None,
    reference: float | None = 0.0,
    reference_label: str = "",
    better: Better = "higher",
) -> Figure:
    """Draw a forest plot: one line per row, one marker per method, intervals, a reference line.

    Args:
        df: one row per dot: value, ci_low, ci_high and the columns named by the arguments below.
        title: what is compared; the profile is appended.
        profile: run profile.
        xlabel: the measured quantity with its unit.
        row: column of the lines, drawn from top to bottom in order of appearance.
        method: column of colours and markers within a line, or None for one dot per line.
        panel: column of side-by-side panels (tasks), or None.
        reference: position of the reference line (no effect, or the baseline), or None.
        reference_label: words at the reference line.
        better: which direction is better; drawn as an arrow.
    """
    _need(df, [row, *_INTERVAL] + [c for c in (method, panel) if c])
    df = digits.rounded(df)
    rows = list(dict.fromkeys(df[row].astype(str)))
    methods = list(dict.fromkeys(df[method].astype(str))) if method else [""]
    panels = list(dict.fromkeys(df[panel].astype(str))) if panel else [""]
    step = 0.7 / max(len(methods), 1)
    with style():
        tall = 1.5 + 0.22 * max(len(rows) * max(len(methods), 1.5), 4)
        fig = Figure(figsize=(max(6.4, 2.2 + 3.0 * len(panels)), tall + 0.25 * (len(methods) > 1)))
        axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, name in zip(axes, panels, strict=True):
            part = df[df[panel].astype(str) == name] if panel else df
            if reference is not None:
                ax.axvline(reference, color=INK, lw=1.0, zorder=1)
                if reference_label:
                    ax.annotate(reference_label, (reference, 1.0), xytext=(4, -2), va="top",
                                xycoords=("data", "axes fraction"), textcoords="offset points",
                                fontsize=8, color=MUTED)  # fmt: skip
            for m, label in enumerate(methods):
                dots = part[part[method].astype(str) == label] if method else part
                y = np.array([rows.index(str(r)) for r in dots[row]], dtype=float)
                y += (m - (len(methods) - 1) / 2) * step
                x = dots["value"].to_numpy(dtype=float)
                colour = COLOURS[m % len(COLOURS)]
                ax.hlines(y, dots["ci_low"].astype(float), dots["ci_high"].astype(float),
                          color=colour, lw=2, zorder=2)  # fmt: skip
                ax.plot(x, y, ls="", marker=MARKERS[m % len(MARKERS)], color=colour, ms=6.5,
                        mec=INK, mew=0.6, zorder=3, label=label)  # fmt: skip
            ax.set_yticks(range(len(rows)), rows)
            ax.set_ylim(len(rows) - 0.4, -0.6)
            ax.grid(axis="y", visible=False)
            ax.xaxis.set_major_locator(MaxNLocator(5))
            ax.set_title(name)
            ax.set_xlabel(_arrow(xlabel, better, vertical=False))
        _heading(fig, title, profile)
        _legend_below(fig, axes[0])
    return fig


def line_ci(
    df: pd.DataFrame,
    *,
    title: str,
    profile: str,
    x: str,
    xlabel: str,
    ylabel: str,
    group: str | None = None,
    panel: str | None = None,
    reference: float | None = None,
    reference_label: str = "",
    better: Better | None = "higher",
    logx: bool = False,
    decades: bool = False,
) -> Figure:
    """Draw lines with intervals over a numeric x (group size, FLOPs), one per group.

    Args are those of `dot_ci`; `better` is None for a quantity that is neither; `x` is the column
    of the abscissa, `logx` scales it by log 2 with a tick at every measured x, `decades` by log 10.
    """
    _need(df, [x, *_INTERVAL] + [c for c in (group,) if c])
    df = digits.rounded(df)
    groups = list(dict.fromkeys(df[group].astype(str))) if group else [""]
    panels = list(dict.fromkeys(df[panel].astype(str))) if panel else [""]
    with style():
        fig = Figure(figsize=(max(6.8, 4.6 * len(panels) if panel else 0), 4.2))
        axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, name in zip(axes, panels, strict=True):
            part = df[df[panel].astype(str) == name] if panel else df
            if reference is not None:
                ax.axhline(reference, color=INK, lw=1.0, ls=":", zorder=1, label=reference_label)
            for g, label in enumerate(groups):
                line = part[part[group].astype(str) == label] if group else part
                _one_line(ax, line.sort_values(x), x, label, g, len(groups), logx, decades)
            if decades:
                ax.set_xscale("log")
                ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                ax.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:g}"))
                ax.xaxis.set_minor_formatter(NullFormatter())
            if logx:
                ax.set_xscale("log", base=2)
                ticks = sorted(part[x].unique())
                ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
                ax.minorticks_off()
            ax.set_title(name)
            ax.set_xlabel(xlabel)
        axes[0].set_ylabel(ylabel if better is None else _arrow(ylabel, better, vertical=True))
        _heading(fig, title, profile)
        _legend_below(fig, axes[0])
    return fig


def _one_line(
    ax: Axes, part: pd.DataFrame, x: str, label: str, g: int, groups: int, logx: bool, exact: bool
) -> None:
    """Line number ``g`` of ``groups``, with its intervals."""
    y, low, high = (part[name].to_numpy(dtype=float) for name in _INTERVAL)
    # A small shift keeps intervals at one x apart; the ticks stand at the true x.
    shift = 0.08 * (g - (groups - 1) / 2)
    at = part[x].to_numpy(float)
    if logx:
        at = at * 2**shift
    elif not exact and (high > low).any():
        at = at + shift * 0.15 * np.ptp(at)
    ax.errorbar(at, y, yerr=np.stack([y - low, high - y]), label=label,
                color=COLOURS[g % len(COLOURS)], marker=MARKERS[g % len(MARKERS)],
                ls=LINES[g % len(LINES)], lw=1.8, ms=6, mec=INK, mew=0.6, capsize=3,
                elinewidth=1.2, zorder=3)  # fmt: skip


def layer_loss_plot(df: pd.DataFrame, *, title: str, profile: str, floor: float) -> Figure:
    """Draw the CCS loss per layer beside that of shuffled pairs and the floor of a constant probe.

    Args:
        df: one row per layer: layer, loss, shuffled_loss (P and N swapped inside pairs) and edited
            (bool), which marks the chosen layers.
        title: what is shown; the profile is appended.
        profile: run profile.
        floor: loss of the best uninformative probe, 0.200 (squared) or 0.4375 (as printed).
    """
    _need(df, ["layer", "loss", "shuffled_loss", "edited"])
    part = digits.rounded(df).sort_values("layer")
    layer, loss, shuffled = (part[name] for name in ("layer", "loss", "shuffled_loss"))
    chosen = part[part["edited"].astype(bool)]
    with _one_panel(title, profile, height=4.0) as (fig, ax):
        ax.axhline(floor, color=INK, lw=1.0, ls=":", label=f"constant probe ({floor:g})")
        ax.plot(layer, shuffled, color=COLOURS[3], marker="s", ls="--", mec=INK, mew=0.6,
                label="shuffled pairs")  # fmt: skip
        ax.plot(layer, loss, color=COLOURS[0], marker="o", mec=INK, mew=0.6, label="pairs")
        ax.plot(chosen["layer"], chosen["loss"], ls="", marker="o", ms=14, mfc="none",
                mec=COLOURS[2], mew=2, label="edited layers")  # fmt: skip
        ax.set_ylim(0, 1.08 * max(floor, shuffled.max(), loss.max()))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("decoder layer")
        ax.set_ylabel("CCS loss (↓ separates better)")
    return fig


def pca_scatter(
    df: pd.DataFrame, *, title: str, profile: str, label: str | None = None
) -> Figure:
    """Draw history items in the plane of two principal components, the selected ones marked.

    Args:
        df: one row per history item: pc1, pc2 and selected (bool), True for what eq. 2 keeps.
        title: whose history; the profile is appended.
        profile: run profile.
        label: column of short words written at the selected items, or None.
    """
    _need(df, ["pc1", "pc2", "selected"] + [c for c in (label,) if c])
    df = digits.rounded(df)
    kept = df["selected"].astype(bool)
    with _one_panel(title, profile, height=4.6) as (fig, ax):
        ax.axhline(0, color=MUTED, lw=0.8)
        ax.axvline(0, color=MUTED, lw=0.8)
        out, inside = df[~kept], df[kept]
        ax.plot(out["pc1"], out["pc2"], ls="", marker="o", ms=6, mfc="none", mec=MUTED,
                label=f"left out ({len(out)})")  # fmt: skip
        ax.plot(inside["pc1"], inside["pc2"], ls="", marker="D", ms=7, color=COLOURS[0], mec=INK,
                mew=0.6, label=f"selected ({len(inside)})")  # fmt: skip
        if label:
            for _, item in inside.iterrows():
                ax.annotate(str(item[label]), (item["pc1"], item["pc2"]), xytext=(6, 4),
                            textcoords="offset points", fontsize=8)  # fmt: skip
        ax.margins(0.12)
        ax.set_xlabel("first principal component")
        ax.set_ylabel("second principal component")
    return fig


def groups_scatter(
    df: pd.DataFrame, *, title: str, profile: str, xlabel: str, ylabel: str, group: str
) -> Figure:
    """Draw points in a plane, with a colour and a marker for each group.

    Args:
        df: one row per point: x, y and the group, groups in the order of the legend.
        title: what is drawn; the profile is appended.
        profile: run profile.
        xlabel: what x is.
        ylabel: what y is.
        group: column of the groups.
    """
    _need(df, ["x", "y", group])
    df = digits.rounded(df)
    with _one_panel(title, profile, height=4.8) as (fig, ax):
        ax.axhline(0, color=MUTED, lw=0.8)
        ax.axvline(0, color=MUTED, lw=0.8)
        for at, (name, rows) in enumerate(df.groupby(group, sort=False)):
            ax.plot(rows["x"], rows["y"], ls="", marker=MARKERS[at], ms=6, mec=INK, mew=0.4,
                    color=COLOURS[at - 1], label=f"{name} ({len(rows)})")  # fmt: skip
        ax.margins(0.08)
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
    return fig


def _arrow(label: str, better: Better, *, vertical: bool) -> str:
    sign = {"higher": "↑" if vertical else "→", "lower": "↓" if vertical else "←"}[better]
    return f"{label}  ({sign} better)"


def _legend_below(fig: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) < 2:
        return
    # As many columns as the longest label lets stand side by side.
    fitting = int(_LETTERS_PER_INCH * fig.get_figwidth() / (max(map(len, labels)) + 6))
    columns = min(len(labels), max(1, min(4, fitting)))
    fig.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)


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
    fig: Figure,
    figure_id: str,
    *,
    alt: str,
    caption: str,
    data: pd.DataFrame,
    profile: str,
    notebook: str = "",
    made_by: Callable[..., object] | None = None,
) -> FigureOutput:
    """Write <figure_id>.png (2x), .svg, .csv and .json to the figures folder of a profile.

    Args:
        fig: the figure; its title must name the profile.
        figure_id: file stem; figures appear on the index page in the order of their ids.
        alt: what is seen (trend, extremes), for a reader who cannot see it.
        caption: what it means, with n, seeds and profile.
        data: the frame the figure was drawn from.
        profile: run profile.
        notebook: stem of the notebook that shows it; pages link to it.
        made_by: the function that drew it; pages show its code.

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
    by = made(notebook, made_by)
    folder = paths.figures_dir(profile)
    shown = show_figure(fig, alt=alt.strip(), caption=caption.strip())
    paths.replace_bytes(folder / f"{figure_id}.png", shown.png)
    paths.replace_bytes(folder / f"{figure_id}.svg", _render(fig, "svg"))
    paths.replace_text(folder / f"{figure_id}.csv", to_csv(data))
    record = {"id": figure_id, "profile": profile, **shown.metadata, **by}
    paths.replace_text(
        folder / f"{figure_id}.json",
        json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n",
    )
    return shown


def show_figure(fig: Figure, *, alt: str, caption: str) -> FigureOutput:
    """A figure to look at in an Explore cell: shown like the others, kept nowhere.

    Args:
        fig: the figure.
        alt: what is seen.
        caption: what it means.
    """
    png = few_colours(_render(fig, "png"))
    # From the header of a PNG.
    width, height = (int.from_bytes(png[at : at + 4], "big") // _SCALE for at in (16, 20))
    return FigureOutput(png, {"alt": alt, "caption": caption, "width": width, "height": height})


def _render(fig: Figure, kind: Literal["png", "svg"]) -> bytes:
    buffer = io.BytesIO()
    # Versions and dates in the metadata would change the bytes without changing the picture.
    left_out = {"png": ["Software"], "svg": ["Date", "Creator"]}[kind]
    # A fixed canvas instead of a tight box: layout is constrained, sizes are then exact.
    with style():
        fig.savefig(buffer, format=kind, dpi=_SCALE * fig.dpi if kind == "png" else 72.0,
                    metadata=dict.fromkeys(left_out))  # fmt: skip
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
