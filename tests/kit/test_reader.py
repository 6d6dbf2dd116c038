"""A reader's test: from the index every claim reaches its number, CSV, notebook and code.

One click on a mark leads to the row of the verdict, a second one from there to whatever is behind
it. Nothing here needs a browser; the pages are those that the present code makes of the committed
results, and the committed ones.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pandas as pd
import pytest
from bs4 import Tag

from chameleon_lib.kit import paths
from chameleon_lib.kit.numbers import holds
from chameleon_lib.kit.page import page_problems
from chameleon_lib.kit.verdicts import Verdict, load_verdicts
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.estimates import paper_numbers
from tests.kit.html_pages import broken, linked, soup

LIMIT = 3_000_000  # bytes of the index and all its pictures


@pytest.fixture(scope="module", params=["committed", "present code"])
def folder(request: pytest.FixtureRequest, demo_pages: Path) -> Path:
    if request.param == "committed":
        return paths.root() / "outputs" / "demo"
    return demo_pages


@pytest.fixture(scope="module")
def verdicts(folder: Path) -> list[Verdict]:
    return load_verdicts("demo", folder / "verdicts")


def row(index: Path, number: int) -> Tag:
    found = soup(index).find(id=f"v{number}")
    assert isinstance(found, Tag)
    return found


def test_a_mark_of_every_claim_leads_to_its_row(folder: Path, verdicts: list[Verdict]) -> None:
    index = folder / "index.html"
    matrices = soup(index).find_all("table", class_="glance")
    marks = {str(a["href"]) for matrix in matrices for a in matrix.find_all("a")}
    assert marks == {f"#v{i}" for i, v in enumerate(verdicts) if v.setting}


def test_a_row_has_paper_ours_interval_users_seeds_and_the_word(
    folder: Path, verdicts: list[Verdict]
) -> None:
    for number, verdict in enumerate(verdicts):
        text = row(folder / "index.html", number).get_text(" ", strip=True).replace("−", "-")
        ours = "not run" if verdict.ours is None else str(verdict.ours)
        for needed in (verdict.words, verdict.paper, ours, verdict.status):
            assert " ".join(needed.split()) in " ".join(text.split()), (number, needed)
        if verdict.ours:
            assert {str(verdict.n), str(verdict.seeds)} <= set(text.split())


def test_the_csv_of_a_row_holds_its_number(folder: Path, verdicts: list[Verdict]) -> None:
    for number, verdict in enumerate(verdicts):
        csv = folder / linked(row(folder / "index.html", number), "CSV")
        assert csv.suffix == ".csv" and csv.is_file()
        assert verdict.ours is None or holds(csv, verdict.ours), (csv.name, verdict.claim)


def test_the_notebook_of_a_row_is_there_as_page_and_as_notebook(
    folder: Path, verdicts: list[Verdict]
) -> None:
    for number, verdict in enumerate(verdicts):
        page = folder / linked(row(folder / "index.html", number), "notebook")
        assert page == folder / "html" / f"{verdict.notebook}.html" and page.is_file()
        assert (folder / "notebooks" / f"{verdict.notebook}.ipynb").is_file()


def test_the_code_of_a_row_is_the_library_function_that_computes_it(
    folder: Path, verdicts: list[Verdict]
) -> None:
    for number, verdict in enumerate(verdicts):
        link = linked(row(folder / "index.html", number), "code")
        name, _, function = link.partition("#")
        module = Path(name).name.removesuffix(".html")
        source = paths.package_dir().joinpath("sections", *module.split(".")).with_suffix(".py")
        defined = [n.name for n in ast.parse(source.read_text(encoding="utf-8")).body
                   if isinstance(n, ast.FunctionDef)]  # fmt: skip
        assert function in defined and function != "run", (verdict.claim, link)
        shown = soup(folder / name).find(id=function)
        assert isinstance(shown, Tag) and f"def {function}(" in shown.get_text()


def test_every_printed_number_of_the_method_stands_in_a_row_or_a_table(
    folder: Path, verdicts: list[Verdict]
) -> None:
    printed = paper_numbers()
    ours = printed[(printed["method"] == "CHAMELEON") & (printed["table"] != "ablation_pn")]
    papers = " | ".join(v.paper for v in verdicts)
    missing = []
    for entry in ours.itertuples():
        task = str(entry.task).replace("-", "_")
        if entry.metric == get_task(task).metrics[0]:
            there = f"→ {entry.value:.3f})" in papers
        else:  # the second metric of a task is judged by none, but stands beside ours
            table = pd.read_csv(folder / "tables" / f"{entry.table}_{task}.csv")
            there = bool((table[f"paper {entry.metric}"] == entry.value).any())
        if not there:
            missing.append((entry.table, entry.task, entry.metric, entry.value))
    assert len(ours) == 24 and missing == []


def test_no_link_of_any_page_leads_nowhere(folder: Path) -> None:
    pages = [folder / "index.html", *sorted((folder / "html").rglob("*.html"))]
    assert len(pages) > 20
    assert {page.name: broken(page) for page in pages if broken(page)} == {}


def test_nothing_is_loaded_from_elsewhere(folder: Path) -> None:
    for page in [folder / "index.html", *sorted((folder / "html").rglob("*.html"))]:
        assert page_problems(page.read_text(encoding="utf-8")) == [], page.name


def test_the_index_with_all_its_pictures_is_light(folder: Path) -> None:
    index = folder / "index.html"
    pictures = [folder / str(image["src"]) for image in soup(index).find_all("img")]
    assert len(pictures) >= 5 and all(i.get("loading") == "lazy" for i in soup(index)("img"))
    assert index.stat().st_size + sum(p.stat().st_size for p in pictures) <= LIMIT


def test_the_first_screen_says_what_was_claimed_found_and_how_sure(
    folder: Path, verdicts: list[Verdict]
) -> None:
    header = soup(folder / "index.html").header
    assert header is not None
    text = header.get_text(" ", strip=True)
    assert re.search(r"demo profile: .* says nothing about Mistral-7B", text)
    counted = sum(v.status == "reproduced" for v in verdicts)
    assert "Claimed" in text and f"{counted} reproduced" in text and "95 % interval" in text
