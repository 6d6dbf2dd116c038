"""Anybody's predictions of any system, measured as this kit measures its own.

A file of golds and files of predictions in LaMP's format (or plain lists) go in. Out come the
task's official metrics with 95 % intervals over users, paired tests between the files, the floors
that need no model, and how much of every number is the form of the answers: refusals, preambles,
length, one answer for everybody. Every number goes through the frame of the studies, so that our
own predictions give our own table.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from chameleon_lib.core.answers import form_scores, is_echo, without_preamble
from chameleon_lib.core.task import Task, User, get_task
from chameleon_lib.data.lamp import read_golds
from chameleon_lib.data.metrics import higher_is_better, per_sample_scores
from chameleon_lib.data.users import load_users
from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.pages import TEMPLATES
from chameleon_lib.kit.stats import MIN_USERS, Estimate, effect_word, mcnemar, swap_test
from chameleon_lib.kit.tables import estimate_columns, table_html, to_csv
from chameleon_lib.studies.arms import confusion_codes
from chameleon_lib.studies.frame import (
    NO_DRAW,
    STATISTICS,
    counts_last,
    estimate,
    long_frame,
    matrix,
    pick,
    sums,
)

PAGE = "audit.html"
STRIPPED = "{system}, preambles stripped"
FLOOR = "floor: {name}"
_SHOWN = 3  # ids that a sentence names


@dataclass(frozen=True)
class Audited:
    """What is compared, on the same questions.

    Attributes:
        task: The task.
        answers: System → one answer per question; the files as they are, those of free text with
            their preambles stripped, and the floors.
        systems: Names of the files among them.
        golds: Gold answers, in the same order.
        ids: Of the questions.
        users: Who asks each.
        inputs: The query of each; empty where no questions were given.
    """

    task: Task
    answers: dict[str, list[str]]
    systems: list[str]
    golds: list[str]
    ids: list[str]
    users: list[str]
    inputs: list[str]

    @property
    def frame(self) -> pd.DataFrame:
        """All scores of all rows, as the frame of the studies; a system is a method."""
        return long_frame(
            [
                {
                    "task": self.task.name,
                    "model": "audit",
                    "backbone": "audit",
                    "condition": "",
                    "draw": NO_DRAW,
                    "repeat": 0,
                    "method": name,
                    "user": self.users,
                    "query": self.ids,
                    "scores": {
                        **per_sample_scores(self.task, self.golds, texts),
                        "confusion": confusion_codes(self.task.name, self.golds, texts),
                        "valid": [float(self.task.is_valid(text)) for text in texts],
                        **form_scores(texts),
                    },
                    "texts": texts,
                }
                for name, texts in self.answers.items()
            ]
        )


def read_predictions(path: Path, task: str | Task, ids: Sequence[str]) -> list[str]:
    """One prediction per id, from a file of predictions.

    Args:
        path: JSON: LaMP's ``{"task": ..., "golds": [{"id", "output"}]}``, a list of ``{"id",
            "output"}``, or a list of strings in the order of the golds.
        task: Task or its name.
        ids: Of the golds, in their order.

    Raises:
        UserError: Broken file, another task, a value that is no string, or ids that are missing,
            unknown or given twice.
    """
    chosen = get_task(task)
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except ValueError as error:  # also what is no UTF-8
        raise UserError(f"{path} is not valid JSON ({error}); write it again.") from error
    if isinstance(content, dict):
        name = str(content.get("task"))
        if name.replace("-", "_") != chosen.name:
            raise UserError(
                f"{path} says task {name!r}, expected {chosen.name!r}; give its own file."
            )
        content = content.get("golds")
    if not isinstance(content, list):
        raise UserError(
            f'{path} has no list of predictions; write {{"task": "{chosen.name}", "golds": '
            '[{"id": ..., "output": ...}]} or a list.'
        )
    if content and not any(isinstance(entry, dict) for entry in content):
        if len(content) != len(ids):
            raise UserError(
                f"{path} lists {len(content)} predictions for {len(ids)} golds; give one for each, "
                "or name them by id."
            )
        content = [{"id": own, "output": text} for own, text in zip(ids, content, strict=True)]
    found: dict[str, str] = {}
    for at, entry in enumerate(content):
        if not isinstance(entry, dict) or not {"id", "output"} <= set(entry):
            raise UserError(
                f"{path}, prediction number {at} has no id and output; name them in all entries."
            )
        own, text = entry["id"], entry["output"]
        if not isinstance(own, str) or not isinstance(text, str):
            what, value = ("id", own) if not isinstance(own, str) else ("output", text)
            raise UserError(
                f"{path}, prediction number {at} has {what} {value!r}; write it as a string."
            )
        if own in found:
            raise UserError(f"{path} predicts {own!r} twice; remove one of them.")
        found[own] = text
    missing, extra = [one for one in ids if one not in found], sorted(set(found) - set(ids))
    if missing:
        raise UserError(
            f"{path} has no prediction for {len(missing)} of {len(ids)} golds "
            f"({_some(missing)}); add them."
        )
    if extra:
        raise UserError(
            f"{path} predicts {len(extra)} ids that the golds do not have ({_some(extra)}); "
            "remove them, or give the golds they belong to."
        )
    return [found[own] for own in ids]


def _some(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:_SHOWN])) + (", ..." if len(ids) > _SHOWN else "")


def read_audit(
    task: str, golds: Path, predictions: Sequence[Path], questions: Path | None = None
) -> Audited:
    """Read and align all files of an audit.

    Args:
        task: Name of the task.
        golds: LaMP's outputs file.
        predictions: One file per system, named by its stem (or by its path, where stems agree).
        questions: LaMP's questions file: tells the users, and lets the floors of the task be
            computed. Without it every question counts as a user of its own.

    Raises:
        UserError: A file that is broken, or does not belong to the others.
    """
    chosen = get_task(task)
    gold = {own: text.strip() for own, text in read_golds(golds, chosen).items()}
    if not gold:
        raise UserError(f"{golds} holds no golds; give the *_outputs.json file.")
    stems = [path.stem for path in predictions]
    names = [str(path) if stems.count(path.stem) > 1 else path.stem for path in predictions]
    if len(set(names)) < len(names):
        raise UserError(f"{_twice(names)} is given twice; name every file of predictions once.")
    people: list[User] = []
    ids, owners = list(gold), list(gold)
    if questions is not None:
        people = load_users(questions, golds, chosen)
        ids = [query.id for user in people for query in user.queries]
        owners = [user.id for user in people for _ in user.queries]
    inputs = [query.text for user in people for query in user.queries]
    files = dict(zip(names, predictions, strict=True))
    said = {name: read_predictions(path, chosen, list(gold)) for name, path in files.items()}
    place = {own: at for at, own in enumerate(gold)}
    answers = {name: [texts[place[own]] for own in ids] for name, texts in said.items()}
    if not chosen.labels:
        answers |= {
            STRIPPED.format(system=name): [without_preamble(text) for text in answers[name]]
            for name in names
        }
    truth = [gold[own] for own in ids]
    answers |= {
        FLOOR.format(name=name): texts for name, texts in _floors(chosen, people, truth).items()
    }
    return Audited(chosen, answers, names, truth, ids, owners, inputs)


def _twice(names: Sequence[str]) -> str:
    return next(name for name, count in Counter(names).items() if count > 1)


def _floors(task: Task, people: Sequence[User], golds: Sequence[str]) -> dict[str, list[str]]:
    """Answers without a model: the task's own of the users, else what is best known afterwards."""
    if people:
        return {name.replace("_", " "): of(people, people) for name, of in task.floors.items()}
    if not task.labels:
        return {}
    always = {"most frequent gold": Counter(golds).most_common(1)[0][0]}
    if all(label.isdigit() for label in task.labels):
        always["mean gold"] = repr(float(np.mean([float(gold) for gold in golds])))
    return {f"{name} (looks at the golds)": [text] * len(golds) for name, text in always.items()}


def levels(audited: Audited, frame: pd.DataFrame) -> pd.DataFrame:
    """Official metrics of every row with 95 % intervals over users, then users and queries."""
    measures = [*audited.task.metrics, "valid"]
    return _table(audited, frame, audited.answers, measures)


def form(audited: Audited, frame: pd.DataFrame) -> pd.DataFrame:
    """How the answers look, whoever they are for.

    Columns: rates of empty answers, refusals and preambles and the mean words with intervals, the
    golds' mean words, the share of different answers and of the most frequent one and, with
    questions, of those that repeat their query.
    """
    table = _table(audited, frame, audited.systems, ["empty", "refusal", "preamble", "words"])
    rows = []
    for name in audited.systems:
        texts = [text.strip() for text in audited.answers[name]]
        row: dict[str, Any] = {
            "words of the golds": float(form_scores(audited.golds)["words"].mean()),
            "different answers": len(set(texts)) / len(texts),
            "most frequent answer": Counter(texts).most_common(1)[0][1] / len(texts),
        }
        if audited.inputs:
            echoes = [is_echo(*pair) for pair in zip(texts, audited.inputs, strict=True)]
            row["repeats the query"] = float(np.mean(echoes))
        rows.append(row)
    return counts_last(pd.concat([table, pd.DataFrame(rows)], axis=1))


def _table(
    audited: Audited, frame: pd.DataFrame, names: Sequence[str] | Mapping[str, Any],
    measures: Sequence[str],
) -> pd.DataFrame:  # fmt: skip
    rows = []
    for name in names:
        row: dict[str, Any] = {"system": name}
        for metric in measures:
            row |= estimate_columns(estimate(frame, name, metric), metric)
        rows.append(row | {"queries": len(audited.ids)})
    return counts_last(pd.DataFrame(rows))


def pairs_of(audited: Audited) -> list[tuple[str, str]]:
    """What is compared: files with each other, with their stripped answers, and with floors."""
    own = [(STRIPPED.format(system=name), name) for name in audited.systems]
    floors = [name for name in audited.answers if name.startswith(FLOOR.format(name=""))]
    return [
        *combinations(audited.systems, 2),
        *(pair for pair in own if pair[0] in audited.answers),
        *((name, floor) for name in audited.systems for floor in floors),
    ]


def differences(audited: Audited, frame: pd.DataFrame) -> pd.DataFrame:
    """The first minus the second of every pair in the first metric of the task.

    Columns: the difference with its interval, p of a paired permutation test over users, the same
    after Holm over all rows, the word for the interval, and where answers are right or wrong,
    McNemar's exact p over queries.
    """
    metric = audited.task.metrics[0]
    score, statistic = STATISTICS[metric]
    rows: list[dict[str, Any]] = []
    for one, other in pairs_of(audited):
        found = estimate(frame, one, metric, other)
        a, b = (pick(frame, method=name) for name in (one, other))
        row: dict[str, Any] = {"system": one, "minus": other}
        row |= estimate_columns(found, f"{metric} difference")
        row["p"] = swap_test(statistic, sums(a, metric)[0], sums(b, metric)[0])
        row["effect"] = word(found, metric)
        if score == "accuracy":
            right = (matrix(rows_, score)[0][0] for rows_ in (a, b))
            row["mcnemar p"] = mcnemar(*right).p
        rows.append(row | {"queries": len(audited.ids)})
    table = pd.DataFrame(rows)
    table.insert(table.columns.get_loc("p") + 1, "p (Holm)", holm(table["p"]))
    return counts_last(table)


def holm(p: Sequence[float] | pd.Series) -> np.ndarray:
    """Holm's adjusted p of several tests, (tests,)."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def word(found: Estimate, metric: str) -> str:
    """ "better", "worse" or "no difference shown"; "too few users" to say so."""
    said = effect_word(found.low, found.high, found.n, higher_is_better=higher_is_better(metric))
    words = {"helps": "better", "hurts": "worse", "": "too few users"}
    return words.get(said, "no difference shown")


def histogram(audited: Audited) -> pd.DataFrame:
    """How often every label is said, and how often something else; golds first."""
    labels = audited.task.labels
    rows = []
    for name, texts in {"golds": audited.golds, **audited.answers}.items():
        counts = Counter(text.strip() for text in texts)
        known = {label: counts[label] for label in labels}
        rows.append({"system": name, **known, "other": len(texts) - sum(known.values())})
    return pd.DataFrame(rows)


def findings(audited: Audited, compared: pd.DataFrame, looks: pd.DataFrame) -> list[str]:
    """What the numbers say, in sentences: floors not beaten, and what of a score is form."""
    metric, said = audited.task.metrics[0], []
    for name in audited.systems:
        rows = compared[compared["system"] == name]
        floors = rows[rows["minus"].str.startswith(FLOOR.format(name=""))]
        lost = floors[floors["effect"] != "better"]
        if len(lost):
            named = ", ".join(row.removeprefix("floor: ") for row in lost["minus"])
            said.append(f"{name} is not shown to be better in {metric} than: {named}.")
        elif len(floors):
            said.append(f"{name} is better in {metric} than every floor.")
        look = looks[looks["system"] == name].iloc[0]
        marks = {
            "say nothing": look["empty"],
            "refuse": look["refusal"],
            "begin with a preamble": look["preamble"],
        }
        told = [f"{share:.1%} of its answers {what}" for what, share in marks.items() if share]
        if look["most frequent answer"] > 0.1 and not audited.task.labels:
            told.append(f"one answer is given to {look['most frequent answer']:.1%} of the queries")
        if told:
            said.append(f"{name}: {'; '.join(told)}.")
    if len(set(audited.users)) < MIN_USERS:
        said.append(f"With fewer than {MIN_USERS} users the numbers stand without a verdict.")
    return said


@dataclass(frozen=True)
class Written:
    """An audit on disk: its page, and what it says in sentences."""

    page: Path
    sentences: list[str]


def write_audit(audited: Audited, folder: Path) -> Written:
    """Compute all tables and write them: CSV files and one page that opens from disk.

    Nothing is written before everything is computed.

    Raises:
        UserError: The folder cannot be written to.
    """
    frame, users = audited.frame, len(set(audited.users))
    looks, compared = form(audited, frame), differences(audited, frame)
    whose = f"{users} users, {len(audited.ids)} queries"
    metrics, level = ", ".join(audited.task.metrics), levels(audited, frame)
    sentences = [
        *(_told(row, audited.task.metrics) for row in level.to_dict("records")),
        *findings(audited, compared, looks),
    ]
    tables = {
        "levels": (level, f"{metrics} and share of valid answers, {whose}"),
        "differences": (compared, f"Paired differences in {audited.task.metrics[0]}, {whose}"),
        "form": (looks, f"What the answers look like, {whose}"),
    }
    if audited.task.labels:
        tables["labels"] = (histogram(audited), f"How often each label is said, {whose}")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("audit.html.j2").render(
        title=audited.task.title,
        css=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        findings=sentences[len(level) :],
        named=bool(audited.inputs),
        tables=[
            {"id": name, "html": Markup(table_html(table, caption))}
            for name, (table, caption) in tables.items()
        ],
    )
    try:
        for name, (table, _) in tables.items():
            paths.replace_text(folder / f"{name}.csv", to_csv(table))
        paths.replace_text(folder / PAGE, page)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error.strerror}); give another --to."
        ) from error
    return Written(folder / PAGE, sentences)


def _told(row: Mapping[Any, Any], metrics: Sequence[str]) -> str:
    numbers = (
        f"{name} {row[name]:.4f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
        for name in metrics
    )
    return f"{row['system']}: {', '.join(numbers)}, n = {row['n']}"
