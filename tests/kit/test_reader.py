"""A reader's test: from the index every claim reaches its number, CSV, notebook and code.

One click on a mark leads to the row of the verdict, a second one from there to whatever is behind
it. Nothing here needs a browser; the pages are those that the present code makes of the committed
results.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from bs4 import Tag

from chameleon_lib.core.task import get_task
from chameleon_lib.kit.report import holds
from chameleon_lib.kit.verdicts import Verdict, load_verdicts
from chameleon_lib.studies.methods import paper_numbers
from tests.kit.html_pages import broken, linked, page_problems, soup

LIMIT = 3_000_000  # bytes of the index and all its pictures


@pytest.fixture(scope="module")
def verdicts(demo_pages: Path) -> list[Verdict]:
    return load_verdicts("demo", demo_pages / "verdicts")


def row(index: Path, number: int) -> Tag:
    found = soup(index).find(id=f"v{number}")
    assert isinstance(found, Tag)
    return found


def test_a_mark_of_every_claim_leads_to_its_row(demo_pages: Path, verdicts: list[Verdict]) -> None:
    index = demo_pages / "index.html"
    matrices = soup(index).find_all("table", class_="glance")
    marks = {str(a["href"]) for matrix in matrices for a in matrix.find_all("a")}
    assert marks == {f"#v{i}" for i, v in enumerate(verdicts) if v.setting}


def test_a_row_has_all_that_a_verdict_needs_and_its_links_hold_it(
    demo_pages: Path, verdicts: list[Verdict]
) -> None:
    for number, verdict in enumerate(verdicts):
        found = row(demo_pages / "index.html", number)
        text = " ".join(found.get_text(" ", strip=True).replace("−", "-").split())
        ours = "not run" if verdict.ours is None else str(verdict.ours)
        for needed in (verdict.words, verdict.paper, ours, verdict.status):
            assert " ".join(needed.split()) in text, (number, needed)
        if verdict.ours:
            assert {str(verdict.n), str(verdict.seeds)} <= set(text.split())
            assert holds(demo_pages / linked(found, "CSV"), verdict.ours), verdict.claim
        page = demo_pages / linked(found, "notebook")
        assert page == demo_pages / "html" / f"{verdict.notebook}.html" and page.is_file()
        assert (demo_pages / "notebooks" / f"{verdict.notebook}.ipynb").is_file()


def test_the_code_of_a_row_is_the_function_that_its_file_names(
    demo_pages: Path, verdicts: list[Verdict]
) -> None:
    for number, verdict in enumerate(verdicts):
        found = row(demo_pages / "index.html", number)
        csv = demo_pages / linked(found, "CSV")
        side = json.loads(csv.with_suffix(".json").read_text(encoding="utf-8"))
        link = linked(found, "code")
        if "made_by" not in side:
            assert link == "", verdict.claim
            continue
        module, _, function = side["made_by"].partition(":")
        assert link == f"html/code/{module.partition('.')[2]}.html#{function}", verdict.claim
        shown = soup(demo_pages / link.partition("#")[0]).find(id=function)
        assert isinstance(shown, Tag) and f"def {function.rpartition('.')[2]}(" in shown.get_text()


def test_every_printed_number_of_the_method_stands_in_a_row_or_a_table(
    demo_pages: Path, verdicts: list[Verdict]
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
            table = pd.read_csv(demo_pages / "tables" / f"{entry.table}_{task}.csv")
            there = bool((table[f"paper {entry.metric}"] == entry.value).any())
        if not there:
            missing.append((entry.table, entry.task, entry.metric, entry.value))
    assert len(ours) == 24 and missing == []


def test_no_page_has_a_broken_link_or_shuts_anybody_out(demo_pages: Path) -> None:
    pages = [demo_pages / "index.html", *sorted((demo_pages / "html").rglob("*.html"))]
    assert len(pages) > 11
    for page in pages:
        assert broken(page) == [], page.name
        assert page_problems(page.read_text(encoding="utf-8")) == [], page.name


def test_the_committed_pages_are_those_of_the_present_code(
    demo_pages: Path, committed_demo: Path
) -> None:
    pages = [demo_pages / "index.html", *(demo_pages / "html").glob("*.html")]
    committed = {path: committed_demo / path.relative_to(demo_pages) for path in pages}
    stale = [new.name for new, old in committed.items() if new.read_bytes() != old.read_bytes()]
    assert stale == [], "write them anew: python -m chameleon_lib page"


def test_the_index_with_all_its_pictures_is_light(demo_pages: Path) -> None:
    index = demo_pages / "index.html"
    pictures = [demo_pages / str(image["src"]) for image in soup(index).find_all("img")]
    assert len(pictures) >= 5 and all(i.get("loading") == "lazy" for i in soup(index)("img"))
    assert index.stat().st_size + sum(p.stat().st_size for p in pictures) <= LIMIT


def test_the_first_screen_says_what_was_claimed_found_and_how_sure(
    demo_pages: Path, verdicts: list[Verdict]
) -> None:
    header = soup(demo_pages / "index.html").header
    assert header is not None
    text = header.get_text(" ", strip=True)
    assert "Not the paper's numbers." in text
    counted = sum(v.status == "reproduced" for v in verdicts)
    assert "Claimed" in text and f"{counted} reproduced" in text and "95 % interval" in text
