"""axe-core finds nothing serious: the index in all its dresses, and every notebook's page.

axe's own file comes from the package axe-playwright-python (axe-core is under MPL-2.0: used here,
copied nowhere).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from chameleon_lib.kit.notebooks import discover
from chameleon_lib.kit.paths import notebooks_dir
from tests.browser.conftest import Opener

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
STEMS = [notebook.name for notebook in discover(notebooks_dir())]
# Row five of a table has the colours and roles of row three: axe need not read hundreds of them.
_SHORTEN = """() => {
  document.querySelectorAll('details').forEach(d => { d.open = true; });
  document.querySelectorAll('tbody').forEach(
    body => [...body.rows].slice(4).forEach(row => row.remove()));
}"""


def findings(show: Opener, name: str, scheme: str, width: int) -> list[str]:
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is missing")
    page = show(name, width=width, color_scheme=scheme)
    page.evaluate(_SHORTEN)
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate(
        "rules => axe.run(document, {runOnly: rules, resultTypes: ['violations']})", RULES
    )
    assert len(found["passes"]) > 5  # it has looked
    return [
        f"{fault['impact']}: {fault['id']}: {node['html'][:120]}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"][:3]
    ]


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_index_has_no_serious_fault(show: Opener, scheme: str, width: int) -> None:
    assert findings(show, "index.html", scheme, width) == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
@pytest.mark.parametrize("stem", STEMS)
def test_no_page_of_a_notebook_has_a_serious_fault(
    show: Opener, stem: str, scheme: str, width: int
) -> None:
    assert findings(show, f"html/{stem}.html", scheme, width) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_of_code_has_a_serious_fault(show: Opener, code_page: str, scheme: str) -> None:
    assert findings(show, code_page, scheme, 390) == []


def test_it_finds_a_fault_where_there_is_one(show: Opener) -> None:
    page = show()
    page.evaluate("() => { document.querySelector('h1').style.color = '#ccc'; }")
    axe = pytest.importorskip("axe_playwright_python")
    page.evaluate(_SHORTEN)
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("() => axe.run('header', {runOnly: ['wcag2aa']})")
    assert [fault["id"] for fault in found["violations"]] == ["color-contrast"]
