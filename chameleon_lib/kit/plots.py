"""Plot functions: a frame and a few words in, a matplotlib Figure out; nothing is computed here."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from chameleon_lib.errors import UserError
from chameleon_lib.kit.style import COLOURS, INK, LINES, MARKERS, MUTED, style

Better = Literal["higher", "lower"]
_LETTERS_PER_INCH = 15  # of a legend at 9 points


def _need(df: pd.DataFrame, columns: list[str]) -> None:
    missing = [column for column in columns if column not in df.columns]
    if missing or df.empty:
        raise UserError(f"The frame to plot has {len(df)} rows and lacks columns {missing}.")


def _heading(fig: Figure, title: str, profile: str) -> None:
    # The profile is part of the title, so that a copied figure cannot pass for the paper's.
    text = f"{title} · {profile} profile"
    fig.suptitle(text, x=0.01, ha="left", fontsize=12, fontweight="bold", wrap=True)


def dot_ci(
    df: pd.DataFrame,
    *,
    title: str,
    profile: str,
    xlabel: str,
    row: str = "method",
    method: str | None = None,
    panel: str | None = None,
    value: str = "value",
    low: str = "ci_low",
    high: str = "ci_high",
    reference: float | None = 0.0,
    reference_label: str = "",
    better: Better = "higher",
) -> Figure:
    """Draw a forest plot: one line per row, one marker per method, intervals, a reference line.

    Args:
        df: one row per dot; columns named by the arguments below.
        title: what is compared; the profile is appended.
        profile: run profile.
        xlabel: the measured quantity with its unit.
        row: column of the lines, drawn from top to bottom in order of appearance.
        method: column of colours and markers within a line, or None for one dot per line.
        panel: column of side-by-side panels (tasks), or None.
        value: column of the dots.
        low: column of lower bounds.
        high: column of upper bounds.
        reference: position of the reference line (no effect, or the baseline), or None.
        reference_label: words at the reference line.
        better: which direction is better; drawn as an arrow.
    """
    _need(df, [row, value, low, high] + [c for c in (method, panel) if c])
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
                x = dots[value].to_numpy(dtype=float)
                colour = COLOURS[m % len(COLOURS)]
                ax.hlines(y, dots[low].astype(float), dots[high].astype(float),
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
        if len(methods) > 1:
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
    value: str = "value",
    low: str = "ci_low",
    high: str = "ci_high",
    reference: float | None = None,
    reference_label: str = "",
    better: Better | None = "higher",
    logx: bool = False,
) -> Figure:
    """Draw lines with intervals over a numeric x (group size, seconds), one per group.

    Args are those of `dot_ci`; `better` is None for a quantity that is neither; `x` is the column
    of the abscissa, `logx` scales it by log 2 with a tick at every measured x.
    """
    _need(df, [x, value, low, high] + [c for c in (group,) if c])
    groups = list(dict.fromkeys(df[group].astype(str))) if group else [""]
    with style():
        fig = Figure(figsize=(6.8, 4.2))
        ax = fig.subplots()
        if reference is not None:
            ax.axhline(reference, color=INK, lw=1.0, ls=":", zorder=1, label=reference_label)
        for g, name in enumerate(groups):
            part = (df[df[group].astype(str) == name] if group else df).sort_values(x)
            y = part[value].to_numpy(dtype=float)
            spread = np.stack([y - part[low].to_numpy(float), part[high].to_numpy(float) - y])
            # A small shift keeps intervals at one x apart; the ticks stand at the true x.
            shift = 0.08 * (g - (len(groups) - 1) / 2)
            at = part[x].to_numpy(float)
            at = at * 2**shift if logx else at + shift * 0.15 * np.ptp(df[x].to_numpy(float))
            ax.errorbar(at, y, yerr=spread, label=name, color=COLOURS[g % len(COLOURS)],
                        marker=MARKERS[g % len(MARKERS)], ls=LINES[g % len(LINES)], lw=1.8, ms=6,
                        mec=INK, mew=0.6, capsize=3, elinewidth=1.2, zorder=3)  # fmt: skip
        if logx:
            ax.set_xscale("log", base=2)
            ticks = sorted(df[x].unique())
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.minorticks_off()
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel if better is None else _arrow(ylabel, better, vertical=True))
        _heading(fig, title, profile)
        if len(groups) > 1 or reference_label:
            _legend_below(fig, ax)
    return fig


def layer_loss_plot(
    df: pd.DataFrame,
    *,
    title: str,
    profile: str,
    floor: float,
    layer: str = "layer",
    loss: str = "loss",
    shuffled: str = "shuffled_loss",
    edited: str = "edited",
) -> Figure:
    """Draw the CCS loss per layer beside that of shuffled pairs and the floor of a constant probe.

    Args:
        df: one row per layer; `edited` (bool) marks the chosen layers.
        title: what is shown; the profile is appended.
        profile: run profile.
        floor: loss of the best uninformative probe, 0.200 (squared) or 0.4375 (as printed).
        layer: column of the layer index.
        loss: column of the CCS loss.
        shuffled: column of the loss after swapping P and N inside pairs.
        edited: column that marks the edited layers.
    """
    _need(df, [layer, loss, shuffled, edited])
    part = df.sort_values(layer)
    chosen = part[part[edited].astype(bool)]
    with style():
        fig = Figure(figsize=(6.8, 4.0))
        ax = fig.subplots()
        ax.axhline(floor, color=INK, lw=1.0, ls=":", label=f"constant probe ({floor:g})")
        ax.plot(part[layer], part[shuffled], color=COLOURS[3], marker="s", ls="--", mec=INK,
                mew=0.6, label="shuffled pairs")  # fmt: skip
        ax.plot(part[layer], part[loss], color=COLOURS[0], marker="o", mec=INK, mew=0.6,
                label="pairs")  # fmt: skip
        ax.plot(chosen[layer], chosen[loss], ls="", marker="o", ms=14, mfc="none",
                mec=COLOURS[2], mew=2, label="edited layers")  # fmt: skip
        ax.set_ylim(0, 1.08 * max(floor, part[shuffled].max(), part[loss].max()))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("decoder layer")
        ax.set_ylabel("CCS loss (↓ separates better)")
        _heading(fig, title, profile)
        _legend_below(fig, ax)
    return fig


def pca_scatter(
    df: pd.DataFrame,
    *,
    title: str,
    profile: str,
    pc1: str = "pc1",
    pc2: str = "pc2",
    selected: str = "selected",
    label: str | None = None,
) -> Figure:
    """Draw history items in the plane of two principal components, the selected ones marked.

    Args:
        df: one row per history item.
        title: whose history; the profile is appended.
        profile: run profile.
        pc1: column of the first component.
        pc2: column of the second component.
        selected: bool column, True for the items eq. 2 keeps.
        label: column of short words written at the selected items, or None.
    """
    _need(df, [pc1, pc2, selected] + [c for c in (label,) if c])
    kept = df[selected].astype(bool)
    with style():
        fig = Figure(figsize=(6.4, 4.6))
        ax = fig.subplots()
        ax.axhline(0, color=MUTED, lw=0.8)
        ax.axvline(0, color=MUTED, lw=0.8)
        ax.plot(df.loc[~kept, pc1], df.loc[~kept, pc2], ls="", marker="o", ms=6, mfc="none",
                mec=MUTED, label=f"left out ({int((~kept).sum())})")  # fmt: skip
        ax.plot(df.loc[kept, pc1], df.loc[kept, pc2], ls="", marker="D", ms=7, color=COLOURS[0],
                mec=INK, mew=0.6, label=f"selected ({int(kept.sum())})")  # fmt: skip
        if label:
            for _, item in df[kept].iterrows():
                ax.annotate(str(item[label]), (item[pc1], item[pc2]), xytext=(6, 4),
                            textcoords="offset points", fontsize=8)  # fmt: skip
        ax.margins(0.12)
        ax.set_xlabel("first principal component")
        ax.set_ylabel("second principal component")
        _heading(fig, title, profile)
        _legend_below(fig, ax)
    return fig


def _arrow(label: str, better: Better, *, vertical: bool) -> str:
    sign = {"higher": "↑" if vertical else "→", "lower": "↓" if vertical else "←"}[better]
    return f"{label}  ({sign} better)"


def _legend_below(fig: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    # As many columns as the longest label lets stand side by side.
    fitting = int(_LETTERS_PER_INCH * fig.get_figwidth() / (max(map(len, labels)) + 6))
    columns = min(len(labels), max(1, min(4, fitting)))
    fig.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)
