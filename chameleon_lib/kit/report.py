"""The pages of a run profile: outputs/<profile>/index.html, every notebook, and the code behind.

The index says what was claimed, what was found and how sure that is, then the main claim, all
claims at a glance and one figure per section; whatever supports them opens on demand. All of it is
counted from the verdicts and side files that the notebooks left.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.facts import load_run_facts
from chameleon_lib.kit.notebooks import discover
from chameleon_lib.kit.pages import (
    TEMPLATES,
    Code,
    banner,
    code_of,
    render_notebook,
    title_of,
    write_code_pages,
)
from chameleon_lib.kit.stats import (
    DIRECTION_ONLY,
    HOLDS,
    NOT_REPRODUCED,
    NOT_RUN,
    OPPOSITE,
    REPRODUCED,
    STATUSES,
    Estimate,
)
from chameleon_lib.kit.tables import span
from chameleon_lib.kit.verdicts import Verdict, load_verdicts

# Status → (mark, tone); the word stands beside the mark wherever there is room for it.
MARKS = {
    "reproduced": ("✓", "good"),
    "direction only": ("◐", "half"),
    "not reproduced": ("✗", "bad"),
    "opposite": ("⇄", "bad"),
    "holds": ("✓", "good"),
    "does not hold": ("✗", "bad"),
    "too few users": ("–", "none"),
    "not run at this scale": ("–", "none"),
}
_WHOSE = (("the paper's claims", False), ("our own claims", True))
_DIGITS = 1e-5  # CSV files keep six significant digits

Side = dict[str, Any]  # what is said of a figure or table in the JSON beside it
Numbered = tuple[int, Verdict]  # a verdict and its place in the whole list: its anchor on the page


def build(profile: str, only: Collection[str] | None = None, underway: str = "") -> Path:
    """Render executed notebooks of a profile and write outputs/<profile>/index.html.

    The page of a whole run holds nothing that differs between two runs on one environment:
    wall-clock facts stay in outputs/<profile>/measured/.

    Args:
        profile: run profile.
        only: stems of the notebooks whose own pages are written; all of them, and the pages of the
            library's code, if None.
        underway: what the page says of a run that has not ended.
    """
    folders = (paths.verdicts_dir, paths.tables_dir, paths.figures_dir)
    judges, tables, figures = (_sides(of(profile), profile) for of in folders)
    titles = {}
    for path in sorted(paths.executed_dir(profile).glob("*.ipynb")):
        if ".partial" not in path.name:
            titles[path.stem] = title_of(path)
            if only is None or path.stem in only:
                sides = [s for s in (*judges, *tables, *figures) if s["notebook"] == path.stem]
                render_notebook(path, profile, _codes(sides))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    css = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    if only is None:
        codes = _codes([*judges, *tables, *figures])
        write_code_pages(codes, profile, environment, css=css)
    target = paths.outputs_dir(profile) / "index.html"
    page = environment.get_template("index.html.j2").render(
        profile=profile,
        banner=banner(profile),
        underway=underway,
        css=css,
        tables=tables,
        controls=[side for side in tables if side["kind"] == "control"],
        figures=figure_groups(figures, titles, _notebook_facts()),
        notebooks=[{"stem": stem, "title": title} for stem, title in titles.items()],
        stems=set(titles),
        facts=load_run_facts(target.parent),
        **_judged(load_verdicts(profile), titles, [*judges, *tables], target.parent),
    )
    paths.replace_text(target, page.lstrip())
    return target


def _codes(sides: Sequence[Side]) -> tuple[Code, ...]:
    return tuple(dict.fromkeys(side["code"] for side in sides if side["code"]))


def _notebook_facts() -> dict[str, Mapping[str, Any]]:
    """Notebook stem -> what the source notebook's metadata tell the kit."""
    return {
        notebook.name: notebook.content["metadata"].get("chameleon", {})
        for notebook in discover(paths.notebooks_dir())
    }


def _judged(
    verdicts: Sequence[Verdict], titles: Mapping[str, str], sides: Sequence[Side], folder: Path
) -> dict[str, Any]:
    """All that the index page says of verdicts.

    Args:
        verdicts: of the profile.
        titles: notebook stem -> title.
        sides: what is said of the files of verdicts and of tables.
        folder: outputs/<profile>.
    """
    numbered, by_id = list(enumerate(verdicts)), {side["id"]: side for side in sides}
    rows = [_row(number, verdict, folder, by_id) for number, verdict in numbered]
    groups = []
    for stem in dict.fromkeys(verdict.notebook for verdict in verdicts):
        here = [row for row in rows if row["v"].notebook == stem]
        groups.append(
            {
                "stem": stem,
                "title": titles.get(stem, stem),
                "code": by_id[stem]["code"],
                "rows": sorted(here, key=lambda row: row["v"].own),  # the paper's claims first
            }
        )
    return {
        "found": found(verdicts),
        "beyond": beyond(verdicts),
        "headline": [rows[number] for number, _ in headline(numbered)],
        "counts": _counts(verdicts),
        "glances": [
            (title, glance([(i, v) for i, v in numbered if v.own == own])) for title, own in _WHOSE
        ],
        "groups": groups,
    }


def _sides(folder: Path, profile: str) -> list[Side]:
    """Read the JSON beside every figure or table, or of verdicts, ordered by id.

    Each gets `code`, what made it, and `notebook`, the stem of what saved it; both may be empty.
    """
    sides = []
    for path in sorted(folder.glob("*.json")):
        side = json.loads(path.read_text(encoding="utf-8"))
        if side.get("profile") != profile:
            raise UserError(f"{path.name} belongs to profile {side.get('profile')!r}.")
        stem = path.stem if "verdicts" in side else ""
        sides.append({"id": path.stem, "notebook": stem, **side, "code": code_of(side)})
    return sides


def _row(number: int, verdict: Verdict, folder: Path, sides: Mapping[str, Side]) -> Side:
    """A row of the list of verdicts, with links to the number, its notebook and its code."""
    mark, tone = MARKS[verdict.status]
    page, table = f"html/{verdict.notebook}.html", folder / verdict.csv
    in_table = verdict.ours is not None and table.is_file() and holds(table, verdict.ours)
    csv = verdict.csv if in_table else f"verdicts/{verdict.notebook}.csv"
    return {
        "number": number,
        "v": verdict,
        "paper": verdict.paper.replace("-0.", "−0."),
        "ours": "not run" if verdict.ours is None else str(verdict.ours).replace("-", "−"),
        "mark": mark,
        "tone": tone,
        "page": page if (folder / page).is_file() else "",
        "csv": csv,
        "code": sides.get(Path(csv).stem, {}).get("code"),
    }


def holds(csv: Path, ours: Estimate) -> bool:
    """Whether some row of a table has an effect and both ends of its interval."""
    status = csv.stat()
    cells = _numbers(csv, (status.st_mtime_ns, status.st_size))  # (rows, columns)
    if not cells.size:
        return False
    found = [
        np.isclose(cells, number, rtol=_DIGITS, atol=1e-9).any(axis=1)
        for number in (ours.value, ours.low, ours.high)
    ]
    return bool(np.logical_and.reduce(found).any())


@cache
def _numbers(csv: Path, _stamp: tuple[int, int]) -> np.ndarray:
    return pd.read_csv(csv).select_dtypes("number").to_numpy(dtype=np.float64)


# --- what the page says first ---------------------------------------------------------------------


def headline(verdicts: Sequence[Numbered]) -> list[Numbered]:
    """The paper's first claim in every setting."""
    paper = [(number, v) for number, v in verdicts if not v.own]
    return [
        (number, v)
        for number, v in paper
        if (v.notebook, v.words) == (paper[0][1].notebook, paper[0][1].words)
    ]


def found(verdicts: Sequence[Verdict]) -> list[str]:
    """What came out and how sure it is, in sentences counted from the verdicts.

    Args:
        verdicts: all of a profile, the paper's claims and ours.

    Returns:
        One sentence on the paper's claims, one on how they were judged; none without verdicts.
    """
    paper = [v for v in verdicts if not v.own]
    run = [v for v in verdicts if v.status != NOT_RUN]
    if not paper:
        return []
    counts = Counter(v.status for v in paper)
    always = (REPRODUCED, DIRECTION_ONLY, NOT_REPRODUCED, OPPOSITE)
    words = [f"{counts[s]} {s}" for s in (*always, *(s for s in counts if s not in always))]
    sentences = [
        f"{len(paper)} verdicts, one for each claim of the paper in each task and model family: "
        f"{', '.join(words)}."
    ]
    if run:
        users, seeds = span(v.n for v in run), span(v.seeds for v in run)
        sentences.append(
            f"each on {users} users and {seeds} seeds, with a 95 % interval over users; "
            "“reproduced” also asks that the effect beats its controls."
        )
    return sentences


def beyond(verdicts: Sequence[Verdict]) -> list[str]:
    """What the kit's own method does where the main claim was tested, one sentence per claim."""
    first = next((v for v in verdicts if not v.own), None)
    claims: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if first and verdict.own and verdict.notebook == first.notebook:
            claims.setdefault(verdict.words, []).append(verdict)
    return [
        f"{words}: {sum(v.status == HOLDS for v in settings)} of {len(settings)} settings hold."
        for words, settings in claims.items()
    ]


def _counts(verdicts: Sequence[Verdict]) -> list[tuple[str, str, int]]:
    """Whose claims, which word, how many: the paper's first."""
    found = []
    for whose, own in _WHOSE:
        counts = Counter(verdict.status for verdict in verdicts if verdict.own == own)
        found += [(whose, status, counts[status]) for status in STATUSES if counts[status]]
    return found


# --- all claims at a glance -----------------------------------------------------------------------


def glance(verdicts: Sequence[Numbered]) -> dict[str, Any]:
    """One row per claim, one column per task and model, marks where they meet.

    Args:
        verdicts: those to arrange; a claim of no one place is left to the full list.

    Returns:
        columns, as (task, model) by name; heads, as (task, number of its columns); and rows, each
        with words, section, the unit of numbers that are no change of the task's metric, and cells
        of marks (often one or none).
    """
    placed = [(number, v) for number, v in verdicts if v.setting]
    # By name, since later notebooks know fewer of them.
    columns = sorted({(v.task, v.model) for _, v in placed})
    rows = []
    for notebook, words in dict.fromkeys((v.notebook, v.words) for _, v in placed):
        here = [(n, v) for n, v in placed if (v.notebook, v.words) == (notebook, words)]
        units = dict.fromkeys(v.measure for _, v in here if v.measure and not v.plain)
        cells = [[_mark(n, v) for n, v in here if (v.task, v.model) == place] for place in columns]
        section = here[0][1].section
        rows.append(
            {"words": words, "section": section, "unit": " / ".join(units), "cells": cells}
        )
    heads = [(task, len(list(those))) for task, those in groupby(task for task, _ in columns)]
    return {"columns": columns, "heads": heads, "rows": rows}


def _mark(number: int, verdict: Verdict) -> dict[str, Any]:
    sign, tone = MARKS[verdict.status]
    value = "" if verdict.ours is None else _short(verdict.ours.value, exact=sign != "✗")
    return {"number": number, "verdict": verdict, "sign": sign, "tone": tone, "value": value}


def _short(value: float, *, exact: bool) -> str:
    """Two decimals; three where ``exact`` and two are 0.00, which would belie a mark but the ✗."""
    text = f"{value:+.2f}"
    if exact and not text.strip("+-0."):
        text = f"{value:+.3f}"
    text = text if text.strip("+-0.") else text[1:]  # nothing has no sign
    return text.replace("-", "−")


# --- figures --------------------------------------------------------------------------------------


def figure_groups(
    figures: Sequence[Side], titles: Mapping[str, str], facts: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Figures by the notebook that drew them, those with a leading figure first.

    Args:
        figures: side files, ordered by id; an id begins with the number of its notebook.
        titles: notebook stem -> title.
        facts: notebook stem -> what its metadata say: `figure`, how the id of its leading figure
            begins (a notebook without one only supports the others), and `controls`, whether its
            figures stand with the controls.

    Returns:
        Per notebook: stem, title, controls, the one figure that is open (or None) and the rest.
    """
    by_stem: dict[str, list[Side]] = {}
    for figure in figures:
        number = figure["id"][:2]
        stem = next((s for s in (*titles, *facts) if s.startswith(f"{number}_")), number)
        by_stem.setdefault(figure.get("notebook") or stem, []).append(figure)
    groups = []
    for stem in sorted(by_stem, key=lambda stem: ("figure" not in facts.get(stem, {}), stem)):
        drawn, fact, first = by_stem[stem], facts.get(stem, {}), None
        if "figure" in fact:
            first = next((f for f in drawn if f["id"].startswith(fact["figure"])), drawn[0])
        groups.append(
            {
                "stem": stem,
                "title": titles.get(stem, stem),
                "controls": bool(fact.get("controls")),
                "first": first,
                "rest": [f for f in drawn if f is not first],
            }
        )
    return groups


def what_came_out(verdicts: Sequence[Verdict]) -> str:
    """The results in a few lines of Markdown, as the README tells them.

    Args:
        verdicts: all of a profile.

    Returns:
        The counts, then the main claim in every setting; one sentence if nothing has been judged.
    """
    if not verdicts:
        return "No demo run has been recorded yet."
    lines = [" ".join([*found(verdicts)[:1], *(f"Ours: {text}" for text in beyond(verdicts))]), ""]
    for _, v in headline(list(enumerate(verdicts))):
        ours = "not run" if v.ours is None else f"{v.ours} on {v.n} users".replace("-", "−")
        lines.append(f"- {v.claim}: {ours}; paper {v.paper}: *{v.status}*")
    return "\n".join(lines)
