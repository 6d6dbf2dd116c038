"""How section 4.5 is shown: the figure over compute, the same over seconds, and a summary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from chameleon_lib.kit.figures import FigureOutput, save_figure
from chameleon_lib.kit.style import COLOURS, INK, LINES, MARKERS, style
from chameleon_lib.kit.tables import span
from chameleon_lib.kit.verdicts import Verdict

_CHANGE = "accuracy change"


def cost_figure(frame: pd.DataFrame, profile: str, x: str, xlabel: str) -> Figure:
    """Change against Instruct over a cost on a log axis: a panel per family, a line per method.

    Args:
        frame: Rows of ``time_budget_tables.points``, or of the measured table.
        profile: Run profile.
        x: Column of the cost.
        xlabel: Its name with its unit.
    """
    families = list(dict.fromkeys(frame["family"]))
    methods = list(dict.fromkeys(frame["method"]))
    with style():
        figure = Figure(figsize=(max(6.4, 4.6 * len(families)), 4.4))
        axes = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
        for ax, family in zip(axes, families, strict=True):
            ax.axhline(0, color=INK, lw=1.0, ls=":", label="Instruct")
            for g, method in enumerate(methods):
                part = frame[(frame["family"] == family) & (frame["method"] == method)]
                y = part[_CHANGE].to_numpy(float)
                low, high = (part[f"{_CHANGE}_{end}"].to_numpy(float) for end in ("low", "high"))
                ax.errorbar(part[x].to_numpy(float), y, yerr=np.stack([y - low, high - y]),
                            label=method, color=COLOURS[g], marker=MARKERS[g], ls=LINES[g],
                            lw=1.8, ms=6, mec=INK, mew=0.6, capsize=3, elinewidth=1.2,
                            zorder=3)  # fmt: skip
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:g}".replace("+", "")))
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.set_title(family)
            ax.set_xlabel(xlabel)
        axes[0].set_ylabel("accuracy change against Instruct  (↑ better)")
        figure.suptitle(
            f"LaMP-2: what a budget buys · {profile} profile", x=0.01, ha="left", fontsize=12,
            fontweight="bold",
        )  # fmt: skip
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def compute_figure(frame: pd.DataFrame, profile: str) -> FigureOutput:
    """Figure 4 of the paper with compute in place of minutes."""
    column = "FLOPs with pairs"
    words = []
    for family, part in frame.groupby("family", sort=False):
        last = part[part["budget"] == part["budget"].iloc[-1]]
        each = (
            f"{row.method} {change:+.3f} at {cost:.1e}"
            for row, change, cost in zip(
                last.itertuples(), last[_CHANGE], last[column], strict=True
            )
        )
        words.append(f"{family}: {', '.join(each)}")
    return save_figure(
        cost_figure(frame, profile, column, "FLOPs, writing of the pairs included (log)"),
        "04_compute",
        alt=f"Accuracy change over compute, four methods. At the largest budget, {'; '.join(words)}"
        " FLOPs.",
        caption=(
            f"Change of LaMP-2 accuracy against Instruct on the same {span(frame['n'])} test "
            f"users, over what the training costs by one formula; 95 % intervals over users, "
            f"{span(frame['seeds'])} groups per point. Points of a line are shares of the "
            f"training queries ({profile} profile)."
        ),
        data=frame,
        profile=profile,
    )


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """A table for reading: large counts in powers of ten, shares in per cent."""
    shown = frame.copy()
    for column in shown.columns:
        if "FLOPs" in column and not column.startswith("ratio"):
            shown[column] = [f"{value:.2e}" for value in shown[column]]
        elif "share" in column:
            shown[column] = [f"{value:.0%}" for value in shown[column]]
        elif column.startswith(("tokens", "trained", "queries", "gold", "rows", "steps")):
            shown[column] = [_count(value) for value in shown[column]]
    return shown


def _count(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def summary(
    verdicts: Sequence[Verdict], learned: pd.DataFrame, quality: pd.DataFrame, profile: str
) -> str:
    """What came out, in sentences made from the numbers."""
    sentences = [f"{profile} profile. What came out:"]
    for row in learned.to_dict("records"):
        word = "learned" if row["learned"] == "yes" else "did not learn: its comparison is void"
        gain = row["accuracy change on seen users"]
        sentences.append(f"{row['family']}: {row['method']} {word} ({gain:+.3f} on seen users).")
    for family, part in quality.groupby("family", sort=False):
        row = part.iloc[-1]
        parameters, compute = row["ratio of parameters"], row["ratio of FLOPs"]
        sentences.append(
            f"{family}: on the same pairs the fitted edit trains 1/{1 / parameters:.0f} of DPO's "
            f"parameters with 1/{1 / compute:.1f} of its training FLOPs and ends "
            f"{row['accuracy, fitted minus DPO']:+.3f} from its accuracy."
        )
    sentences += [f"{verdict.status}: {verdict.claim}." for verdict in verdicts]
    return "\n".join(sentences)
