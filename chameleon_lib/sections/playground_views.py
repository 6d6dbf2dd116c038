"""Pictures of the playground: margins over strengths, and where in the network an edit acts."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from chameleon_lib.errors import UserError
from chameleon_lib.kit.figures import FigureOutput, save_figure
from chameleon_lib.kit.style import COLOURS, INK, LINES, MARKERS, MUTED, style
from chameleon_lib.sections.playground import FITTED, NO_EDIT, PAPER, Play

_ORDER = (PAPER, FITTED, NO_EDIT)  # one look per edit in both pictures


def strength_figure(
    frame: pd.DataFrame, play: Play, profile: str, name: str = "09_strength"
) -> FigureOutput:
    """The margin of one query over the strength of each edit.

    Args:
        frame: From ``playground.strengths``.
        play: Names the answers; its strength is marked.
        profile: Run profile.
        name: Id of the figure.
    """
    personal, generic = play.answers
    fig, ax = _axes(frame, f"Strength: “{personal}” or “{generic}”?", profile)
    ax.axvline(play.strength, color=MUTED, lw=1.2, ls=":", zorder=1)
    ax.annotate(f"strength {play.strength:g}", (play.strength, 1.0), xytext=(4, -2), va="top",
                xycoords=("data", "axes fraction"), textcoords="offset points",
                fontsize=8, color=MUTED)  # fmt: skip
    _lines(ax, frame, "strength", "margin (nats)")
    ax.set_xlabel("strength (0: no edit, 1: as found)")
    ax.set_ylabel(f"margin, nats (↑ towards “{personal}”)")
    ends = "; ".join(
        f"{edit}: {part['margin (nats)'].iloc[0]:+.2f} at strength {part['strength'].iloc[0]:g}, "
        f"{part['margin (nats)'].iloc[-1]:+.2f} at {part['strength'].iloc[-1]:g}"
        for edit, part in frame.groupby("edit", sort=False)
    )
    return save_figure(
        fig,
        name,
        alt=f"Lines of the margin over the strength. {ends}.",
        caption=f"log p({personal}) − log p({generic}) of one query; above zero the user's answer "
        f"wins. One query proves nothing ({profile} profile).",
        data=frame,
        profile=profile,
    )


def lens_figure(
    frame: pd.DataFrame, play: Play, profile: str, name: str = "09_lens"
) -> FigureOutput:
    """Logit lens: the preference after every decoder layer, without and with each edit.

    Args:
        frame: From ``playground.layers``.
        play: Names the answers.
        profile: Run profile.
        name: Id of the figure.
    """
    personal, generic = play.answers
    fig, ax = _axes(frame, f"Layer by layer: “{personal}” or “{generic}”?", profile)
    _lines(ax, frame, "layer", "preference (nats)")
    edited = frame[frame["edited"]]
    ax.plot(edited["layer"], edited["preference (nats)"], ls="", marker="o", ms=13, mfc="none",
            mec=COLOURS[2], mew=1.6, zorder=2)  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("decoder layer (ringed: edited there)")
    ax.set_ylabel(f"preference, nats (↑ towards “{personal}”)")
    ends = "; ".join(
        f"{edit}: {part['preference (nats)'].iloc[-1]:+.2f}"
        for edit, part in frame.groupby("edit", sort=False)
    )
    return save_figure(
        fig,
        name,
        alt=f"Lines of the preference over decoder layers. After the last layer, {ends}.",
        caption="Logit lens at the first token in which the two answers differ: the state after "
        "each layer, read by the model's own output head. The last point is the model itself; "
        f"before it, the reading is a guess at an unfinished thought ({profile} profile).",
        data=frame,
        profile=profile,
    )


def _axes(frame: pd.DataFrame, title: str, profile: str) -> tuple[Figure, Axes]:
    if frame.empty:
        raise UserError("There is nothing to draw; give at least one strength.")
    with style():
        fig = Figure(figsize=(7.2, 4.0))
        ax = fig.subplots()
    ax.axhline(0, color=INK, lw=1.0, zorder=1)
    fig.suptitle(f"{title} · {profile} profile", x=0.01, ha="left", fontsize=12,
                 fontweight="bold", wrap=True)  # fmt: skip
    return fig, ax


def _lines(ax: Axes, frame: pd.DataFrame, x: str, y: str) -> None:
    ends = []
    for edit, part in frame.groupby("edit", sort=False):
        number = _ORDER.index(str(edit))
        colour = COLOURS[3] if edit == NO_EDIT else COLOURS[number]
        ax.plot(part[x], part[y], color=colour, marker=MARKERS[number], ls=LINES[number], lw=1.8,
                mec=INK, mew=0.6, zorder=3)  # fmt: skip
        ends.append((float(part[y].iloc[-1]), float(part[x].iloc[-1]), str(edit)))
    # Direct labels at the right end, pushed apart where lines end close together.
    low, high = ax.get_ylim()
    gap, last = 0.07 * (high - low), float("-inf")
    for value, at, edit in sorted(ends):
        last = max(value, last + gap)
        ax.annotate(edit, (at, last), xytext=(9, 0), textcoords="offset points", fontsize=9,
                    va="center", annotation_clip=False)  # fmt: skip
    ax.margins(x=0.04)
