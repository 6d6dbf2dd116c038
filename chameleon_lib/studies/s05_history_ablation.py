"""Section 4.6: tables, figures and verdicts, counted from a finished run of ``s05_selections``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.core.task import get_task
from chameleon_lib.kit.figures import FigureOutput
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import bootstrap_mean
from chameleon_lib.kit.tables import estimate_columns, span
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.studies.frame import (
    Claim,
    Rows,
    Term,
    alike,
    better,
    between,
    columns_of,
    contrast,
    counts_last,
    curve,
    drawn,
    forest,
    judge,
    methods_in,
    pick,
    summarise,
    tabled,
    titled,
)
from chameleon_lib.studies.methods import PAPER as EDIT
from chameleon_lib.studies.methods import file_part, is_papers_decoder, method_of, title_of
from chameleon_lib.studies.run import Run, left_out, split_of
from chameleon_lib.studies.s05_selections import PAPER, TRAINED_ITEMS, Choices, prompt_length
from chameleon_lib.studies.sweeps import Place, effects_of, places_of, plot_reading

# Read off the paper's Figure 5 (± 0.002), which has the decoder only; shown, never compared with.
PLOT: dict[tuple[str, str], Mapping[int, float]] = {
    ("LaMP_2", "accuracy"): {5: 0.382, 10: 0.396, 15: 0.384, 20: 0.365, 25: 0.355},
    ("LaMP_2", "f1"): {5: 0.359, 10: 0.349, 15: 0.333, 20: 0.315, 25: 0.301},
    ("LaMP_3", "mae"): {5: 0.440, 10: 0.407, 15: 0.389, 20: 0.376, 25: 0.306},
    ("LaMP_3", "rmse"): {5: 0.850, 10: 0.815, 15: 0.769, 20: 0.708, 25: 0.657},
}
# Lines of the figure; four names must fit below it.
_LINES = {"instruct": "Instruct", "insight": "with insight", "fitted": "fitted (ours)"}
_OTHERS = ("recent", "nearest")  # controls beside random; "pca raw" is another reading of eq. 2
_TASTE = "share of chosen items with the user's own tag"

Selected = tuple[str, int]  # rule, items


# --- tables --------------------------------------------------------------------------------------


def selected(place: Place) -> Selected:
    """Rule and number of items of a condition."""
    log = place.logs[0]
    return log["rule"], log["items"]


def by_selection(run: Run, task: str, model: str) -> dict[Selected, Place]:
    """(rule, items) → place of one task and model, in the order of the run."""
    return {selected(place): place for place in places_of(run, task, model)}


def versus(one: Place | None, other: Place | None, method: str) -> list[Term]:
    """One method under one selection minus the same under another.

    Compared are the backbones and, of an edit, the groups that both have: a rule may leave a small
    group without a pair to learn from. Empty where nothing is left.
    """
    if one is None or other is None:
        return []
    mine = alike(one.of(method), other.of(method))
    theirs = alike(other.of(method), mine)
    return [(1, mine), (-1, theirs)] if len(mine) else []


def levels(run: Run, task: str) -> pd.DataFrame:
    """Every method in every condition, with the paper's plot beside its own rule."""
    metrics = get_task(task).metrics
    shown = {name: name for name in (*metrics, "valid", "margin")}
    table = summarise(pick(run.frame, task=task), shown, by=("model", "condition"))
    placed = _placed(run, table)
    own = (table["method"] == EDIT) & (placed["rule"] == PAPER)
    own &= table["model"].map(is_papers_decoder).astype(bool)
    for metric in metrics:
        placed[f"paper {metric}"] = placed["items"].map(PLOT.get((task, metric), {})).where(own)
    return counts_last(placed)


def effects(run: Run, task: str) -> pd.DataFrame:
    """Every method against Instruct with the very same items."""
    shown = {name: f"{name} change" for name in (get_task(task).metrics[0], "margin")}
    rows, by = pick(run.frame, task=task), ("model", "condition")
    return _placed(run, summarise(rows, shown, by=by, against="instruct"))


def _placed(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """The table with titles, and rule, items and length of the prompt instead of the condition."""
    known = {cell.condition: cell.draws[0] for cell in run.cells}
    rules, items = ([known[name][at] for name in table["condition"]] for at in ("rule", "items"))
    lengths = [prompt_length(k, model) for k, model in zip(items, table["model"], strict=True)]
    found = titled(table).drop(columns="condition")
    for at, (name, values) in enumerate({"rule": rules, "items": items, "prompt": lengths}.items()):
        found.insert(1 + at, name, values)
    return found


@tabled
def against_controls(run: Run, task: str) -> Rows:
    """The paper's rule minus each control, for every method and number of items they share.

    Margins are compared in the embedded world only: in real data the generic answer is what the
    model says to the chosen items, so that two rules measure against different answers.
    """
    planted = run.data[task].truth is not None
    shown = {name: name for name in (get_task(task).metrics[0], *(("margin",) if planted else ()))}
    for model in run.models:
        found = by_selection(run, task, model)
        for (rule, k), other in found.items():
            for method in methods_in(other.rows) if rule != PAPER else ():
                terms = versus(found[PAPER, k], other, method.id)
                if terms:
                    row = {"model": other.title, "compared": f"{PAPER} minus {rule}", "items": k}
                    yield row | {"method": method.title} | columns_of(shown, contrast, terms)


@tabled
def prompts(run: Run, task: str) -> Rows:
    """What the selection led to: insights, items that fit the context, pairs, edited layers."""
    for place in places_of(run, task):
        rule, k = selected(place)
        row: dict[str, Any] = {"model": place.title, "rule": rule, "items": k}
        row["prompt"] = prompt_length(k, place.model)
        asked = place.of("insight")
        if "named" in set(asked["metric"]):
            named = between(asked, None, "named")
            row |= estimate_columns(named, "insights that name the taste")
        logs = [log for log in place.logs if "kept" in log]
        layers = [",".join(map(str, log["layers"])) or "none" for log in logs]
        counts = sum((Counter(cell.counts) for cell in place.cells), Counter())
        yield row | {
            "items in the prompt": float(pick(asked, metric="items")["value"].mean()),
            "items dropped": counts["dropped_items"],
            **left_out(counts),
            "users in a group": _average(logs, "users"),
            "pairs kept": _average(logs, "kept"),
            "pairs identical": _average(logs, "identical"),
            "groups without a pair": sum("refused" in log for log in logs),
            "edited layers": " | ".join(layers),
            "n": len(run.test_users[task]),
            "seeds": len(logs) or len(place.cells),
        }


def _average(logs: Sequence[dict[str, Any]], name: str) -> float | None:
    return float(np.mean([log[name] for log in logs])) if logs else None


@tabled
def chosen(run: Run, task: str, choices: Choices) -> Rows:
    """What each rule chooses: no model takes part in this.

    ``overlap`` is the share of the chosen items that the paper's rule chooses as well, beside what
    a random choice would share; where a tag is planted, ``taste`` is the share of the chosen items
    that carry it, beside that of the whole history.
    """
    users = run.data[task].chosen(run.test_users[task])
    truth = run.data[task].truth
    for (rule, k), picked in choices.items():
        both = zip(picked, choices[PAPER, k], strict=True)
        shared = [len(set(mine) & set(other)) / len(mine) for mine, other in both]
        row: dict[str, Any] = {"rule": rule, "items": k}
        row |= estimate_columns(bootstrap_mean(shared), "overlap with pca")
        by_chance = [min(1.0, k / len(user.history)) for user in users]
        row["overlap by chance"] = float(np.mean(by_chance))
        if truth is not None and all(truth[user.id].taste.tag for user in users):
            marks = [[i.label == truth[user.id].taste.tag for i in user.history] for user in users]
            each = zip(marks, picked, strict=True)
            carried = [float(np.mean([mark[i] for i in mine])) for mark, mine in each]
            row |= estimate_columns(bootstrap_mean(carried), "taste")
            row["taste in the whole history"] = float(np.mean([np.mean(m) for m in marks]))
        yield row


# --- figures -------------------------------------------------------------------------------------


def items_figure(table: pd.DataFrame, task: str, model: str, publish: Publisher) -> FigureOutput:
    """Figure 5 of one task and model: every method of :func:`levels` over the number of items."""
    metric, title = get_task(task).metrics[0], title_of(model)
    short = {method_of(method).title: name for method, name in _LINES.items()}
    part = table[(table["model"] == title) & (table["rule"] == PAPER)].replace({"method": short})
    data = drawn(part, metric, "items", "method", "prompt")
    return curve(
        publish,
        data,
        f"05_items_{task}_{file_part(model)}",
        made_by=levels,
        title=f"{task.replace('_', '-')}, {title}: by history items",
        caption=f"{metric.capitalize()} by number of history items that PCA chose, for the same "
        f"users; 95 % intervals over {span(data['n'])} test users, mean over at most "
        f"{int(data['seeds'].max())} groups for the edits (a group without a pair to learn from "
        f"has none). The embedded models learned from at most {TRAINED_ITEMS} items by chance: "
        "more are a length they never saw",
        x="items",
        xlabel="history items per user, chosen by PCA",
        ylabel=metric,
        group="method",
        better=better(metric),
    )


def rules_figure(table: pd.DataFrame, task: str, publish: Publisher) -> FigureOutput:
    """Forest plot of :func:`against_controls`: the paper's rule minus each control."""
    metric = get_task(task).metrics[0]
    row = table["compared"] + ", " + table["items"].astype(str) + " items"
    data = drawn(table.assign(row=row), metric, "model", "row", "method")
    return forest(
        publish,
        data,
        f"05_rules_{task}",
        made_by=against_controls,
        title=f"{task.replace('_', '-')}: PCA selection against other rules",
        caption=f"Change of {metric} when PCA chooses the history items instead of another rule, "
        f"for the same users and the same number of items; 95 % intervals over {span(data['n'])} "
        f"test users, {int(data['seeds'].max())} groups for the edits. 'pca raw' is the other "
        "reading of eq. 2",
        xlabel=f"{metric}, PCA minus control",
        row="row",
        method="method",
        panel="model",
        better=better(metric),
    )


def taste_figure(table: pd.DataFrame, task: str, publish: Publisher) -> FigureOutput:
    """How many of the items that a rule chooses carry the planted taste, from :func:`chosen`."""
    data = drawn(table, "taste", "rule", "items")
    whole = float(table["taste in the whole history"].iloc[0])
    return curve(
        publish,
        data,
        f"05_taste_{task}",
        made_by=chosen,
        title=f"{task.replace('_', '-')}: what each rule chooses",
        caption=f"The {_TASTE}; 95 % intervals over {span(data['n'])} test users, one choice per "
        "user. No model takes part: a rule far below the line hides the taste from everything "
        "that follows",
        x="items",
        xlabel="history items per user",
        ylabel="items with the user's tag",
        group="rule",
        reference=whole,
        reference_label="whole history",
    )


# --- verdicts ------------------------------------------------------------------------------------


def claims(run: Run, task: str) -> list[Claim]:
    """The paper's two claims on the number of items, and ours on the rule, for every model."""
    k = run.settings.selection_k
    found = []
    for model in run.models:
        numbers = [at for rule, at in by_selection(run, task, model) if rule == PAPER]
        found.append(number_claim(run, task, model, min(numbers), k))
        found.append(number_claim(run, task, model, k, max(numbers), sign=-1))
        asked = ((PAPER, EDIT), (PAPER, "insight"), ("pca raw", "insight"))
        found += [_rule_claim(run, task, model, rule, method) for rule, method in asked]
    return found


def number_claim(run: Run, task: str, model: str, few: int, many: int, sign: int = 1) -> Claim:
    """More items help CHAMELEON (sign 1) or hurt it (-1), beyond what they do to Instruct.

    A prompt without any edit changes with its items as well: only what exceeds that is the
    method's.
    """
    metric, found = get_task(task).metrics[0], by_selection(run, task, model)
    less, more = found.get((PAPER, few)), found.get((PAPER, many))
    words = (
        f"too little history limits the gain: {many} items beat {few}"
        if sign == 1
        else f"too much history hurts: {many} items are worse than {few}"
    )
    effect, margins = None, {}
    change = versus(more, less, EDIT) if few != many else []
    if change:
        prompt = [(-weight, rows) for weight, rows in versus(more, less, "instruct")]
        margins = {"the change of Instruct": contrast(change + prompt, metric)}
        effect = contrast(change, metric)
    paper = plot_reading(PLOT.get((task, metric), {}), model, few, many)
    split = split_of(run, task)
    return Claim(task, model, words, effect, margins, False, paper, sign, split)


def _rule_claim(run: Run, task: str, model: str, rule: str, method: str) -> Claim:
    """A rule chooses better than chance, and than the other controls where they were run.

    Random items are what the effect is measured against and a control too: where they are the only
    one, a rule that beats them has beaten every control that was run.
    """
    metric, found = get_task(task).metrics[0], by_selection(run, task, model)
    k = run.settings.selection_k
    words = (
        f"beyond the paper's figure, {rule} selection beats random items at {k} items "
        f"({method_of(method).title})"
    )
    beaten = {
        other: contrast(terms, metric)
        for other in ("random", *_OTHERS)
        if (terms := versus(found.get((rule, k)), found.get((other, k)), method))
    }
    effect = beaten.get("random")
    paper, split = "no such comparison in the paper", split_of(run, task)
    return Claim(task, model, words, effect, beaten if effect else {}, True, paper, split=split)


@tabled
def claim_frame(found: Sequence[Claim]) -> Rows:
    """Every claim that was run and every control it must beat, one row each."""
    for claim, control, number in effects_of(found):
        yield {
            "model": title_of(claim.model),
            "claim": claim.words,
            "control": f"minus {control}" if control else "the change itself",
            "metric": get_task(claim.task).metrics[0],
            **estimate_columns(number, "change"),
        }


def verdicts(found: Sequence[Claim], notebook: str) -> list[Verdict]:
    """One verdict per claim."""
    return judge(found, section="4.6", notebook=notebook, csv="tables/figure5_{task}_claims.csv")
