"""Executed notebooks to offline pages, and the index page of a run profile."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import nbformat
from markupsafe import Markup, escape
from nbconvert import HTMLExporter

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.code_pages import write_code_pages
from chameleon_lib.kit.facts import load_run_facts
from chameleon_lib.kit.front import beyond, figure_groups, found, headline
from chameleon_lib.kit.glance import MARKS, glance
from chameleon_lib.kit.mathml import MathStore
from chameleon_lib.kit.numbers import holds, save_verdict_csv
from chameleon_lib.kit.page import page_problems
from chameleon_lib.kit.profiles import get_profile
from chameleon_lib.kit.stats import STATUSES
from chameleon_lib.kit.trail import Function, Trail, read_trail
from chameleon_lib.kit.verdicts import Verdict, load_verdicts

__all__ = ["banner", "build", "page_problems", "render_notebook"]

TEMPLATES = Path(__file__).parent / "templates"
_STYLE = re.compile(r"<style\b.*?</style>", re.DOTALL)
_CSS_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_WHOSE = (("the paper's claims", False), ("our own claims", True))


def banner(profile: str) -> str:
    """Return the sentence that keeps small runs from passing for the paper; empty for `paper`."""
    if profile == "paper":
        return ""
    if profile == "demo":
        return (
            "demo profile: a planted world and tiny embedded models; "
            "says nothing about Mistral-7B or Flan-T5-XXL"
        )
    return get_profile(profile).banner


def render_notebook(executed: Path, profile: str, code: Sequence[Function] = ()) -> Path:
    """Render an executed notebook to outputs/<profile>/html/<stem>.html.

    The page has no script and loads nothing; formulas are MathML, figures carry the alt text and
    caption of their output metadata.

    Args:
        executed: the executed notebook.
        profile: run profile.
        code: library functions behind its numbers, whose pages its head links to.

    Raises:
        UserError: unreadable notebook, unknown formula, or a page that `page_problems` faults.
    """
    try:
        notebook = nbformat.read(executed, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise UserError(f"{paths.display(executed)} is no readable notebook.") from error
    math = MathStore(executed.name)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = math.protect(cell.source)
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output.data["text/markdown"] = math.protect(output.data["text/markdown"])
    exporter = HTMLExporter(template_name="kit", extra_template_basedirs=[str(TEMPLATES)])
    dark = next(
        path
        for folder in exporter.template_paths
        if (path := Path(folder) / "static" / "theme-dark.css").is_file()
    )
    resources = {
        "metadata": {"name": f"{executed.stem} · {profile} profile", "path": ""},
        "kit": {
            "profile": profile,
            "banner": banner(profile),
            "code": [
                {"label": function.label, "href": function.page.removeprefix("html/")}
                for function in code
            ],
            "dark_css": dark.read_text(encoding="utf-8"),
        },
    }
    page, _ = exporter.from_notebook_node(notebook, resources=resources)
    page = _without_css_comments(math.restore(page))
    problems = page_problems(page)
    if problems:
        raise UserError(f"{executed.name} cannot be published: {'; '.join(problems[:5])}.")
    target = paths.outputs_dir(profile) / "html" / f"{executed.stem}.html"
    paths.replace_text(target, page)
    return target


def _without_css_comments(page: str) -> str:
    """The page without the notes that the library's own style sheets carry."""
    return _STYLE.sub(lambda style: _CSS_COMMENT.sub("", style.group()), page)


def build(profile: str) -> Path:
    """Render every executed notebook of a profile and write outputs/<profile>/index.html.

    The page holds nothing that differs between two runs on one environment: wall-clock facts stay
    in outputs/<profile>/measured/.
    """
    folder = paths.outputs_dir(profile)
    executed = [
        path
        for path in sorted(paths.executed_dir(profile).glob("*.ipynb"))
        if ".partial" not in path.name
    ]
    titles = {path.stem: _title(path) for path in executed}
    trails = {path.stem: read_trail(path) for path in executed}
    for path in executed:
        render_notebook(path, profile, trails[path.stem].shown)
    tables = [_sourced(entry, trails) for entry in _sidecars(paths.tables_dir(profile), profile)]
    verdicts = load_verdicts(profile)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    css = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    functions = [function for trail in trails.values() for function in trail.shown]
    write_code_pages(functions, profile, environment, css=css)
    save_verdict_csv(verdicts, profile)
    rows = [_row(number, verdict, folder, trails) for number, verdict in enumerate(verdicts)]
    page = environment.get_template("index.html.j2").render(
        profile=profile,
        banner=banner(profile),
        css=css,
        found=found(verdicts),
        beyond=beyond(verdicts),
        headline=[rows[number] for number, _ in headline(verdicts)],
        counts=_counts(verdicts),
        glances=[(title, glance(verdicts, own=own)) for title, own in _WHOSE],
        groups=[
            {
                "stem": stem,
                "title": titles.get(stem, stem),
                "functions": trails[stem].verdicts if stem in trails else (),
                "rows": [
                    row
                    for _, own in _WHOSE
                    for row in rows
                    if row["v"].notebook == stem and row["v"].own == own
                ],
            }
            for stem in dict.fromkeys(verdict.notebook for verdict in verdicts)
        ],
        figures=figure_groups(_sidecars(paths.figures_dir(profile), profile), titles),
        controls=[entry for entry in tables if entry["kind"] == "control"],
        tables=tables,
        notebooks=[{"stem": stem, "title": title} for stem, title in titles.items()],
        stems=set(titles),
        facts=load_run_facts(folder),
    )
    problems = page_problems(page)
    if problems:
        raise UserError(f"The index page cannot be published: {'; '.join(problems[:5])}.")
    target = folder / "index.html"
    paths.replace_text(target, page.lstrip())
    return target


def _counts(verdicts: Sequence[Verdict]) -> list[tuple[str, str, int]]:
    """Whose claims, which word, how many: the paper's first."""
    found = []
    for whose, own in _WHOSE:
        counts = Counter(verdict.status for verdict in verdicts if verdict.own == own)
        found += [(whose, status, counts[status]) for status in STATUSES if counts[status]]
    return found


def _title(executed: Path) -> Markup:
    """First heading of a notebook, its formulas drawn as on its own page."""
    cells = nbformat.read(executed, as_version=4).cells
    lines = [line for c in cells if c.cell_type == "markdown" for line in c.source.splitlines()]
    title = next((line[2:].strip() for line in lines if line.startswith("# ")), executed.stem)
    math = MathStore(executed.name)
    return Markup(math.restore(str(escape(math.protect(title).replace("&#36;", "$")))))


def _row(
    number: int, verdict: Verdict, folder: Path, trails: Mapping[str, Trail]
) -> dict[str, Any]:
    mark, tone = MARKS[verdict.status]
    page = f"html/{verdict.notebook}.html"
    trail = trails.get(verdict.notebook, Trail())
    csv, code = f"verdicts/{verdict.notebook}.csv", trail.judging(verdict.csv)
    table = folder / verdict.csv
    if verdict.ours is not None and table.is_file() and holds(table, verdict.ours):
        csv, code = verdict.csv, trail.computing(verdict.csv)
    return {
        "number": number,
        "v": verdict,
        "paper": verdict.paper.replace("-0.", "−0."),
        "ours": "not run" if verdict.ours is None else str(verdict.ours).replace("-", "−"),
        "mark": mark,
        "tone": tone,
        "page": page if (folder / page).is_file() else "",
        "csv": csv,
        "code": code,
    }


def _sourced(entry: dict[str, Any], trails: Mapping[str, Trail]) -> dict[str, Any]:
    """A table's sidecar with the notebook that saves it and the function that computes it."""
    for stem, trail in trails.items():
        if functions := trail.of_table(entry["id"]):
            return {**entry, "stem": stem, "code": functions[-1]}
    return {**entry, "stem": "", "code": None}


def _sidecars(folder: Path, profile: str) -> list[dict[str, Any]]:
    """Read the JSON beside every figure or table, ordered by id."""
    entries = []
    for path in sorted(folder.glob("*.json")):
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry.get("profile") != profile:
            raise UserError(f"{path.name} belongs to profile {entry.get('profile')!r}.")
        entries.append(entry)
    return entries
