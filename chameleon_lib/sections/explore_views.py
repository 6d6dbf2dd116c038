"""The picture beside an Explore cell's table: each arm's score and margin, nothing written down."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from chameleon_lib.kit.figures import FigureOutput, show_figure
from chameleon_lib.kit.style import COLOURS, INK, MUTED, style
from chameleon_lib.lamp.metrics import higher_is_better
from chameleon_lib.sections.explore import Sample


def figure(frame: pd.DataFrame, sample: Sample, title: str) -> FigureOutput:
    """Dots of the first metric and of the margin, one line per arm; the first arm is the mark.

    Args:
        frame: From one of the questions of ``explore``.
        sample: Whom it was asked of.
        title: What was varied.
    """
    metric, margin = str(frame.columns[1]), "margin (nats)"
    better = {metric: higher_is_better(metric), margin: True}
    profile, n = sample.study.profile.name, len(sample.users)
    with style():
        fig = Figure(figsize=(7.6, 1.5 + 0.27 * max(len(frame), 3)))
        axes = fig.subplots(1, 2, sharey=True)
        for number, (ax, name) in enumerate(zip(axes, better, strict=True)):
            first, lines = float(frame[name].iloc[0]), range(len(frame))
            ax.axvline(first, color=INK, lw=1.0, zorder=1)
            ax.hlines(lines, first, frame[name], color=MUTED, lw=1.6, zorder=2)
            ax.plot(frame[name], lines, ls="", marker="oD"[number], ms=7, mec=INK, mew=0.6,
                    color=COLOURS[number], zorder=3)  # fmt: skip
            ax.set_yticks(lines, frame["arm"])
            ax.set_ylim(len(frame) - 0.5, -0.5)
            ax.grid(axis="y", visible=False)
            ax.xaxis.set_major_locator(MaxNLocator(5))
            ax.set_xlabel(f"{name}  ({'→' if better[name] else '←'} better)")
        fig.suptitle(f"{title} · {profile} profile", x=0.01, ha="left", fontweight="bold")
    ends = "; ".join(
        f"{arm}: {value:.3f}" for arm, value in zip(frame["arm"], frame[metric], strict=True)
    )
    return show_figure(
        fig,
        alt=f"Dots per arm; {metric} of {ends}.",
        caption=f"The line marks the first arm. {n} users, one group, one model: a look, no "
        f"evidence ({profile} profile).",
    )
