"""One long result frame for every study, and what tables, verdicts and figures count from it.

A row is one number about one answer: ``task``, ``model``, ``backbone`` (the model with its training
seed), ``condition`` (what the study varied), ``draw`` (the random group behind an edit, -1 where
there is none), ``repeat`` (several random directions of one group), ``method``, ``user``,
``query``, ``metric`` and ``value``. Two metrics hold codes: ``answer`` has one number per distinct
text, ``confusion`` the place of (gold label, answer) in the confusion matrix of the task's labels.

Users are resampled, the same draws for every row, so that differences are paired; every training
seed of a model counts the same, whatever the number of its groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, NamedTuple, ParamSpec

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from chameleon_lib.core.answers import FORM
from chameleon_lib.core.task import get_task, registered
from chameleon_lib.data.metrics import higher_is_better
from chameleon_lib.kit.digits import rounded
from chameleon_lib.kit.figures import Better, FigureOutput, dot_ci, line_ci
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import (
    Estimate,
    NoUsersError,
    bootstrap_metric,
    confusion_by_user,
    own_claim,
    sums_by_user,
    verdict,
)
from chameleon_lib.kit.tables import estimate_columns, part_columns
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.studies.forms import measures_of, stripped, unstripped
from chameleon_lib.studies.methods import METHODS, Method, method_of, title_of

COLUMNS = (
    "task", "model", "backbone", "condition", "draw", "repeat", "method", "user", "query", "metric",
    "value",
)  # fmt: skip
NOT_IN_PAPER = "not in the paper"
NO_DRAW = -1  # of an arm that no random group stands behind


class Arm(NamedTuple):
    """Which answers these are: of a method, from a random group, and which of several of it."""

    method: str
    draw: int = NO_DRAW
    repeat: int = 0


class _Statistics(dict[str, tuple[str, str]]):
    """Metric of a table → (metric of the frame, statistic over its sums per user).

    What is given here holds for every task; the metrics of a task are those it names itself, and
    each may be counted of answers without their preambles.
    """

    def __missing__(self, name: str) -> tuple[str, str]:
        if whole := unstripped(name):
            score, statistic = self[whole]
            return stripped(score), statistic
        for task in registered().values():
            for metric in task.measures:
                if metric.name == name:
                    return metric.of if metric.of != "answers" else "confusion", metric.statistic
        raise KeyError(name)


STATISTICS = _Statistics(
    {name: (name, "mean") for name in ("margin", "habits", "changed", "valid", "named", *FORM)}
)
# Metrics that not every user has: where both answers are one text there is no margin.
PARTIAL = ("margin",)


def long_frame(parts: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The frame of many arms.

    Args:
        parts: One per arm, with the columns of the frame: a value each, but a sequence over the
            queries for ``user`` and ``query``, and ``scores`` (metric → values over the queries)
            and ``texts`` in place of ``metric`` and ``value``.
    """
    chunks: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    texts: dict[str, int] = {}
    for part in parts:
        said = [texts.setdefault(text, len(texts)) for text in part["texts"]]
        scores = {**part["scores"], "answer": said}
        for name in COLUMNS[:-2]:
            values = part[name] if name in ("user", "query") else [part[name]] * len(said)
            chunks[name].append(np.tile(np.array(values, dtype=object), len(scores)))
        chunks["metric"].append(np.repeat(np.array([*scores], dtype=object), len(said)))
        chunks["value"].append(np.concatenate([np.asarray(v, float) for v in scores.values()]))
    columns: dict[str, Any] = {}
    for name, found in chunks.items():
        column = np.concatenate(found) if found else np.array([])
        if name in ("draw", "repeat"):
            columns[name] = column.astype(np.int16)
        elif name == "value":
            columns[name] = column
        else:
            codes, levels = pd.factorize(column)
            columns[name] = pd.Categorical.from_codes(codes, list(levels))
    return pd.DataFrame(columns)


def joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of several frames, whose users, queries or methods may be others."""
    frame = pd.concat(parts, ignore_index=True)
    for name in frame.columns:
        if all(isinstance(part[name].dtype, pd.CategoricalDtype) for part in parts):
            frame[name] = union_categoricals([part[name] for part in parts])
    return frame


def pick(frame: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """The rows whose columns have these values; a collection allows any of its members."""
    return frame[_chosen(frame, where)]


def _chosen(frame: pd.DataFrame, where: Mapping[str, Any]) -> np.ndarray:
    """(rows,) bool."""
    keep = np.ones(len(frame), dtype=bool)
    for column, wanted in where.items():
        one = isinstance(wanted, str) or not isinstance(wanted, Collection)
        members: list[Any] = [wanted] if one else list(wanted)
        values = frame[column].array
        if isinstance(values, pd.Categorical):  # codes are compared faster than values
            known = values.categories
            members = [known.get_loc(member) for member in members if member in known]
            values = values.codes
        keep &= values == members[0] if len(members) == 1 else np.isin(values, members)
    return keep


def values_of(frame: pd.DataFrame, column: str) -> list[Any]:
    """The different values of a column in the order of the rows."""
    return list(frame[column].unique())


def places(frame: pd.DataFrame, *by: str) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Every combination of some columns with its rows, in the order of the rows."""
    first, *rest = by
    for value in values_of(frame, first):
        part = pick(frame, **{first: value})
        if not rest:
            yield (value,), part
            continue
        for values, rows in places(part, *rest):
            yield (value, *values), rows


def having(frame: pd.DataFrame, *methods: str) -> pd.DataFrame:
    """The rows of the backbones that hold all of these methods: some run on a few only."""
    held = [
        set(frame["backbone"][_chosen(frame, {"method": method})].unique()) for method in methods
    ]
    common = set.intersection(*held)
    return frame if common == set(frame["backbone"].unique()) else pick(frame, backbone=common)


def methods_in(frame: pd.DataFrame) -> list[Method]:
    """The methods that any of these rows is of, in table order."""
    found = set(frame["method"].unique())
    return [method for method in METHODS if method.id in found]


def metrics_of(frame: pd.DataFrame) -> list[str]:
    """The metrics of one task's tables: official ones, margin, habits (if planted), two rates.

    Beside the official ones of free text stands the form of its answers.
    """
    found, task = set(frame["metric"].unique()), values_of(frame, "task")[0]
    names = [*get_task(task).metrics, *measures_of(task), "margin", "habits", "changed", "valid"]
    return [name for name in names if STATISTICS[name][0] in found]


def alike(rows: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The rows of the backbones and draws that ``other`` has as well."""
    keys = ["backbone", "draw"]
    held = pd.MultiIndex.from_frame(other[keys].astype(object).drop_duplicates())
    return rows[pd.MultiIndex.from_frame(rows[keys].astype(object)).isin(held)]


def matrix(rows: pd.DataFrame, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One metric of one method.

    Args:
        rows: Rows of one method under one condition.
        metric: A metric of the frame.

    Returns:
        Values (seeds, queries), NaN where there is none; the backbone of every seed; and the user
        of every query as a number, (queries,), in order of appearance.
    """
    at = np.flatnonzero(_chosen(rows, {"metric": metric}))
    backbones, users, asked = (
        rows[name].array.codes[at].astype(np.int64) for name in ("backbone", "user", "query")
    )
    draws, repeats = (rows[name].to_numpy()[at].astype(np.int64) for name in ("draw", "repeat"))
    # One number per seed: a backbone, a draw and a repeat, which stay below 2 ** 16.
    arms, arm_names = pd.factorize((backbones << 32) + (draws << 16) + repeats)
    queries, query_names = pd.factorize(asked)
    values = np.full((len(arm_names), len(query_names)), np.nan)
    values[arms, queries] = rows["value"].to_numpy()[at]
    owner = np.zeros(len(query_names), dtype=np.int64)
    owner[queries] = users
    trained = np.zeros(len(arm_names), dtype=np.int64)
    trained[arms] = backbones
    return values, trained, pd.factorize(owner)[0]


def sums(rows: pd.DataFrame, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Summed statistics (seeds, users, k) of one method, and the weights (seeds,) of its seeds.

    A user without any value has the count 0. Every backbone weighs the same.
    """
    name, statistic = STATISTICS[metric]
    values, backbones, users = matrix(rows, name)
    weights = np.array([1 / np.sum(backbones == one) for one in backbones])
    if statistic == "macro_f1":
        labels = get_task(values_of(rows, "task")[0]).labels
        gold, said = np.divmod(values.astype(int), len(labels) + 1)
        known = [*labels, ""]
        found = [
            confusion_by_user(
                [known[at] for at in one], [known[at] for at in other], labels, users.tolist()
            )
            for one, other in zip(gold, said, strict=True)
        ]
        return np.stack(found), weights
    totals = np.zeros((int(users.max(initial=-1)) + 1, len(values), 2))
    known_values = np.isfinite(values)
    np.add.at(totals[..., 0], users, np.where(known_values, values, 0.0).T)
    np.add.at(totals[..., 1], users, known_values.T.astype(float))
    return np.moveaxis(totals, 0, 1), weights


def group_sums(parts: Sequence[tuple[Sequence[str], Sequence[float]]]) -> np.ndarray:
    """(users, 2) sums and counts of values that several overlapping groups have given.

    Users of all groups are pooled; a user in several groups counts once, with the mean of them.

    Args:
        parts: Per group the user of every value, and the values.
    """
    users = [user for own, _ in parts for user in own]
    held = Counter(user for own, _ in parts for user in set(own))
    groups = np.array([[held[user]] for user in dict.fromkeys(users)])  # (users, 1)
    return sums_by_user([value for _, values in parts for value in values], users) / groups


def estimate(frame: pd.DataFrame, method: str, metric: str, against: str | None = None) -> Estimate:
    """Level of a method, or its paired difference to another on the same users.

    Backbones without the method, or without the one it is compared with, do not enter. The rows are
    of one task, model and condition, the metric is one of :data:`STATISTICS`, and ``n`` counts the
    users who have a value.

    Raises:
        NoUsersError: No user has a value of the metric on some backbone.
    """
    held = having(frame, method, against or method)
    return between(
        pick(held, method=method), None if against is None else pick(held, method=against), metric
    )


def between(rows: pd.DataFrame, other: pd.DataFrame | None, metric: str) -> Estimate:
    """The level of some rows, or their difference to others; each are of one method."""
    one, weights = sums(rows, metric)
    two, other_weights = (None, None) if other is None else sums(other, metric)
    return bootstrap_metric(STATISTICS[metric][1], one, two, seed_weights=(weights, other_weights))


Term = tuple[float, pd.DataFrame]  # a weight, and the rows of one method under one condition


def user_sums(rows: pd.DataFrame, metric: str) -> np.ndarray:
    """(users, 2) sums and counts of a metric that is a mean; every backbone counts the same."""
    if STATISTICS[metric][1] != "mean":
        raise ValueError(f"{metric} is no mean over queries, so arms of it cannot be added up")
    each = [sums(part, metric)[0].mean(axis=0) for _, part in places(rows, "backbone")]
    return np.asarray(np.mean(each, axis=0))


def contrast(terms: Sequence[Term], metric: str) -> Estimate:
    """The weighted sum of some arms, paired user by user; also across conditions.

    With weights 1 and -1 this is the difference that :func:`estimate` gives. ``n`` counts the users
    who have a value, ``seeds`` those of the arm with most.

    Raises:
        NoUsersError: No user has a value of the metric.
    """
    parts = [user_sums(rows, metric) for _, rows in terms]
    counts = parts[0][:, 1]
    if any(not np.array_equal(part[:, 1], counts) for part in parts):
        raise ValueError("the arms of a contrast must have a value for the same queries")
    total = sum(weight * part[:, 0] for (weight, _), part in zip(terms, parts, strict=True))
    found = bootstrap_metric("mean", np.stack([total, counts], axis=-1))
    return replace(found, seeds=max(n_seeds(rows) for _, rows in terms))


def difference(frame: pd.DataFrame, one: str, other: str, metric: str) -> Estimate:
    """One method minus another, as a contrast on the same backbones."""
    held = having(frame, one, other)
    return contrast([(1, pick(held, method=one)), (-1, pick(held, method=other))], metric)


def n_seeds(rows: pd.DataFrame) -> int:
    """Backbones times groups (and random directions of a group) behind the rows of one method."""
    return len(rows[["backbone", "draw", "repeat"]].drop_duplicates())


def where_defined(compute: Callable[..., Estimate], *args: Any) -> Estimate | None:
    """What ``compute`` returns for the arguments; None where no user has a value.

    As the margin is undefined where the user's answer is anyone's.
    """
    try:
        return compute(*args)
    except NoUsersError:
        return None


def columns_of(
    metrics: Mapping[str, str],
    compute: Callable[..., Estimate],
    *args: Any,
) -> dict[str, Any]:
    """The columns of a row: every metric with its interval, then users and seeds.

    Args:
        metrics: Metric → column name; a metric of :data:`PARTIAL` gets a count of its own.
        compute: Gives the estimate of a metric, its last argument.
        *args: What it is given before the metric.
    """
    row: dict[str, Any] = {}
    for metric, name in metrics.items():
        if metric in PARTIAL:
            row |= part_columns(where_defined(compute, *args, metric), name)
        else:
            row |= estimate_columns(compute(*args, metric), name)
    return row | {name: row.pop(name) for name in ("n", "seeds") if name in row}


def summarise(
    frame: pd.DataFrame,
    metrics: Mapping[str, str] | Sequence[str],
    *,
    by: Sequence[str] = ("model",),
    against: str | None = None,
    methods: Sequence[Method] | None = None,
) -> pd.DataFrame:
    """Level of every method, or its paired difference to one of them, with intervals over users.

    Args:
        frame: Rows of one task.
        metrics: Metrics, or metric → column name.
        by: Columns that make a row beside the method.
        against: Id of the method that all are compared with; itself it has no row then.
        methods: Methods with a row, in order; all that are there if None.

    Returns:
        Columns ``by`` and ``method`` (ids), every metric with its bounds, ``n`` and ``seeds``.
    """
    named = metrics if isinstance(metrics, Mapping) else {metric: metric for metric in metrics}
    rows = []
    for values, part in places(frame, *by):
        for method in methods_in(part):
            if method.id == against or not (methods is None or method in methods):
                continue
            held = having(part, method.id, against or method.id)
            other = None if against is None else pick(held, method=against)
            row = dict(zip(by, values, strict=True)) | {"method": method.id}
            rows.append(row | columns_of(named, between, pick(held, method=method.id), other))
    return counts_last(pd.DataFrame(rows))


Row = tuple[Mapping[str, Any], Callable[[str], Estimate]]  # what it shows, its estimate of a metric


def tabulate(
    frame: pd.DataFrame,
    rows: Callable[[pd.DataFrame], Iterable[Row]],
    name: str = "{metric} change",
) -> pd.DataFrame:
    """Contrasts of every task and model, on the first metric of the task and on the margin.

    Tasks of labels and of free text share the table, so the form of answers is not in it: it stands
    beside the levels of the same arms.

    Args:
        frame: The result frame.
        rows: From the rows of one task and model to those of the table.
        name: Title of both measures; without a ``{metric}`` in it, that of the first metric.
    """
    table = []
    for (task, model), part in places(frame, "task", "model"):
        metric = get_task(task).metrics[0]
        for shown, compute in rows(part):
            row = {"task": task.replace("_", "-"), "model": title_of(model), **shown}
            row["metric"] = metric
            row |= columns_of({metric: name.format(metric=metric)}, compute)
            margin = name if "{metric}" in name else f"margin {name}"
            table.append(row | columns_of({"margin": margin.format(metric="margin")}, compute))
    return pd.DataFrame(table)


Rows = Iterator[dict[str, Any]]
_Asked = ParamSpec("_Asked")


def tabled(rows: Callable[_Asked, Rows]) -> Callable[_Asked, pd.DataFrame]:
    """Make a function that yields the rows of a table return the table, its counts at the end."""

    @wraps(rows)
    def table(*args: _Asked.args, **options: _Asked.kwargs) -> pd.DataFrame:
        return counts_last(pd.DataFrame(rows(*args, **options)))

    return table


def counts_last(table: pd.DataFrame) -> pd.DataFrame:
    """The table with users and seeds, where it has them, at the end."""
    ends = [name for name in ("n", "seeds") if name in table]
    return table[[*(name for name in table.columns if name not in ends), *ends]]


def titled(table: pd.DataFrame, *facts: str) -> pd.DataFrame:
    """The table with titles in place of the ids of tasks, models and methods.

    Args:
        table: As :func:`summarise` returns it.
        *facts: Fields of the methods to show beside them, such as "kind"; "labels" is shown as
            "gold labels".
    """
    shown: dict[str, Any] = {}
    for name in table.columns:
        if name == "task":
            shown["task"] = [task.replace("_", "-") for task in table[name]]
        elif name == "model":
            shown["model"] = [title_of(model) for model in table[name]]
        elif name == "method":
            rows = [method_of(method) for method in table[name]]
            shown["method"] = [row.title for row in rows]
            for fact in facts:
                title = "gold labels" if fact == "labels" else fact
                shown[title] = [getattr(row, fact) for row in rows]
        else:
            shown[name] = table[name]
    return pd.DataFrame(shown, index=table.index)


@dataclass(frozen=True)
class Claim:
    """One claim with its numbers, ready to be judged.

    Attributes:
        task: Task name.
        model: Model id.
        words: What is claimed, such as "CHAMELEON's edit beats Instruct".
        effect: What is judged; None where it was not run.
        margins: Control → the effect minus that control's, on the same users.
        own: Whether the kit makes the claim, and not the paper.
        paper: The paper's number in words.
        sign: 1 where a gain is claimed, -1 where a loss is.
        split: Which users are scored, in words.
        remark: Put before the controls in the note.
        note: The whole note, if it is not the list of the controls.
        measure: What the effect is; the change of the task's first metric if empty.
        metric: What is measured, if not that metric.
        scorer: How it is scored; LaMP's definition of that metric if empty.
        upwards: Whether more is better, if not by that metric.
    """

    task: str
    model: str
    words: str
    effect: Estimate | None
    margins: Mapping[str, Estimate] = field(default_factory=dict)
    own: bool = True
    paper: str = NOT_IN_PAPER
    sign: int = 1
    split: str = ""
    remark: str = ""
    note: str = ""
    measure: str = ""
    metric: str = ""
    scorer: str = ""
    upwards: bool | None = None


def judge(claims: Sequence[Claim], *, section: str, notebook: str, csv: str) -> list[Verdict]:
    """One verdict per claim, by the kit's only rule.

    Args:
        claims: In the order of the page.
        section: Section of the paper.
        notebook: Stem of the notebook.
        csv: Table behind the numbers, relative to outputs/<profile>; ``{task}`` stands for a task.
    """
    return [_judged(claim, section, notebook, csv.format(task=claim.task)) for claim in claims]


def _judged(claim: Claim, section: str, notebook: str, csv: str) -> Verdict:
    metric, effect = get_task(claim.task).metrics[0], claim.effect
    upwards = higher_is_better(metric) if claim.upwards is None else claim.upwards
    status = verdict(effect, list(claim.margins.values()), upwards, paper_sign=claim.sign)
    beaten = "no other control was run"
    if claim.margins:
        beaten = f"must also beat: {', '.join(claim.margins)}".replace("_", " ")
    return Verdict(
        words=claim.words,
        section=section,
        notebook=notebook,
        paper=claim.paper,
        ours=effect,
        status=own_claim(status) if claim.own else status,
        n=effect.n if effect else 0,
        seeds=effect.seeds if effect else 0,
        scorer=claim.scorer or f"{metric}, LaMP evaluator's definition",
        csv=csv,
        note=claim.note or "; ".join(filter(None, (claim.remark, beaten))),
        split=claim.split,
        own=claim.own,
        task=claim.task.replace("_", "-"),
        model=title_of(claim.model),
        metric=claim.metric or metric,
        measure=claim.measure or f"{metric} change",
        plain=not claim.measure,
    )


def drawn(table: pd.DataFrame, column: str, *keep: str) -> pd.DataFrame:
    """What a figure draws: some columns of a table, and one measure with its interval.

    Args:
        table: As :func:`summarise` returns it, with titles.
        column: The measure; it becomes ``value``, ``ci_low`` and ``ci_high``, and where not every
            user has it, ``n`` counts those who do.
        *keep: Columns to keep before it.
    """
    table = rounded(table)  # by the name of the measure, which the figure's frame does not keep
    names = {column: "value", f"{column}_low": "ci_low", f"{column}_high": "ci_high"}
    if f"{column} n" in table:
        table, names = table.drop(columns="n"), {**names, f"{column} n": "n"}
    return table.rename(columns=names)[[*keep, "value", "ci_low", "ci_high", "n", "seeds"]]


def better(metric: str) -> Better:
    """Which way is better, as figures say it; a margin is better higher."""
    return "higher" if metric in PARTIAL or higher_is_better(metric) else "lower"


def forest(
    publish: Publisher, data: pd.DataFrame, figure_id: str, *, title: str, caption: str,
    made_by: Callable[..., object], alt: str = "", **how: Any,
) -> FigureOutput:  # fmt: skip
    """Draw, save and show a forest plot.

    Args:
        publish: Of the notebook.
        data: As :func:`drawn` returns it; the CSV beside the figure.
        figure_id: File stem.
        title: What is compared.
        caption: What it means, without its full stop; the profile is said behind it.
        made_by: The function that asked for it.
        alt: What is seen; the range and how many intervals leave out 0 if empty.
        **how: Options of :func:`chameleon_lib.kit.figures.dot_ci`.
    """
    image = dot_ci(data, title=title, profile=publish.profile, **how)
    apart = int(((data["ci_low"] > 0) | (data["ci_high"] < 0)).sum())
    ends = f"from {_number(data['value'].min())} to {_number(data['value'].max())}"
    alt = alt or (
        f"Forest plot of {len(data)} values of {how['xlabel']} {ends}; {apart} of the intervals "
        "leave out 0."
    )
    says = f"{caption} ({publish.profile} profile)."
    return publish.figure(image, figure_id, alt=alt, caption=says, data=data, made_by=made_by)


def curve(
    publish: Publisher, data: pd.DataFrame, figure_id: str, *, title: str, caption: str,
    made_by: Callable[..., object], alt: str = "", **how: Any,
) -> FigureOutput:  # fmt: skip
    """Draw, save and show lines over a number: :func:`forest` with the options of ``line_ci``.

    An empty ``alt`` is made from both ends of every line.
    """
    image = line_ci(data, title=title, profile=publish.profile, **how)
    lines = []
    for name, line in data.sort_values(how["x"]).groupby(how["group"], sort=False):
        first, last = (_number(line["value"].iloc[at]) for at in (0, -1))
        lines.append(f"{name} from {first} to {last}")
    alt = alt or f"Lines of {how['ylabel']} over {how['xlabel']}: {'; '.join(lines)}."
    says = f"{caption} ({publish.profile} profile)."
    return publish.figure(image, figure_id, alt=alt, caption=says, data=data, made_by=made_by)


def _number(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:+.3f}"
