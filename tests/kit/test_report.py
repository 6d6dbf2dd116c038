"""Pages load nothing, run nothing, describe every picture, and come back byte for byte."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.facts import load_run_facts, save_run_facts
from chameleon_lib.kit.figures import dot_ci, save_figure
from chameleon_lib.kit.mathml import MathStore
from chameleon_lib.kit.report import build, page_problems, render_notebook
from chameleon_lib.kit.stats import Estimate
from chameleon_lib.kit.tables import estimate_columns, save_table, show_table
from chameleon_lib.kit.verdicts import Verdict, save_verdicts

ALT = 'One dot at 0.2, right of the "no edit" line.'
CAPTION = "Effect on 200 users, 3 seeds."
EFFECT = Estimate(0.2, 0.1, 0.3, 200, 3)


@pytest.fixture(autouse=True)
def _outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))


def write_notebook(profile: str, text: str = "", code_output: str = "") -> Path:
    frame = pd.DataFrame([{"control": "random <1>", **estimate_columns(EFFECT)}])
    figure = dot_ci(frame, title="Effect", profile=profile, xlabel="nats", row="control")
    shown = save_figure(figure, "01", alt=ALT, caption=CAPTION, data=frame, profile=profile)
    data, metadata = shown._repr_mimebundle_()
    new = nbformat.v4
    table = code_output or show_table(frame, "Effect").data
    notebook = new.new_notebook(
        cells=[
            new.new_markdown_cell("# 4.2 Users, $\\theta^P$\n\n" + text),
            new.new_code_cell(
                "table", outputs=[new.new_output("display_data", data={"text/html": table})]
            ),
            new.new_code_cell(
                "figure", outputs=[new.new_output("display_data", data=data, metadata=metadata)]
            ),
        ],
        metadata={"language_info": {"name": "python"}},
    )
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    path = paths.executed_dir(profile) / "01_per_user.ipynb"
    paths.replace_text(path, nbformat.writes(notebook))
    return path


def fill(profile: str) -> None:
    write_notebook(profile)
    frame = pd.DataFrame([{"control": "random <1>", **estimate_columns(EFFECT)}])
    save_table(frame, "06_controls", profile, "Random directions.", kind="control")
    save_table(frame, "01_effect", profile, "Effect.")
    rows = [
        Verdict("The edit <b>helps</b>", "4.2", "01_per_user", "+0.198", EFFECT, "direction only",
                200, 3, "accuracy (LaMP evaluator)", "tables/01_effect.csv",
                setting="LaMP-2, decoder", measure="slope, nats"),
        Verdict("It beats DPO", "4.5", "01_per_user", "+0.1", None, "not run at this scale",
                0, 0, "accuracy", ""),
    ]  # fmt: skip
    save_verdicts(rows, "01_per_user", profile)
    save_run_facts(profile)


def test_a_rendered_notebook_is_self_contained_and_described() -> None:
    text = "$$\\hat{x} = x + \\frac{a}{b}$$\n\nIt cost $5 and $6; `$code$` stays.\n"
    page = render_notebook(write_notebook("demo", text), "demo")
    html = page.read_text(encoding="utf-8")
    assert page == paths.outputs_dir("demo") / "html" / "01_per_user.html"
    assert page_problems(html) == [] and "<script" not in html
    assert html.count("<math ") == 2 and "KITMATH" not in html
    assert not any("/*" in style for style in re.findall(r"<style.*?</style>", html, re.DOTALL))
    assert "$code$" in html and "\\hat" not in re.sub(r'alttext="[^"]*"', "", html)
    assert [i["alt"] for i in BeautifulSoup(html, "html.parser").find_all("img")] == [ALT]
    assert f"<figcaption>{CAPTION}</figcaption>" in html
    assert "says nothing about Mistral-7B" in html


def test_a_notebook_page_that_would_load_or_run_something_is_refused() -> None:
    bad = write_notebook("demo", code_output='<img src="https://example.org/a.png" alt="far away">')
    with pytest.raises(UserError, match="loads"):
        render_notebook(bad, "demo")
    bad = write_notebook("demo", code_output="<script>alert(1)</script>")
    with pytest.raises(UserError, match="script"):
        render_notebook(bad, "demo")


def test_an_unknown_formula_is_named_with_its_notebook() -> None:
    with pytest.raises(UserError, match=r"01_per_user.*\\nosuchcommand"):
        render_notebook(write_notebook("demo", "$\\nosuchcommand{x}$"), "demo")


@pytest.mark.parametrize(
    ("markdown", "formulas"),
    [
        ("$x$ and $$y$$", 2),
        ("It cost $5 and $6", 0),
        ("`$x$` and ``a `$y$` b``", 0),
        ("```\n$x$\n```\n$y$", 1),
        (r"\$x\$", 0),
        ("$ x $", 0),
        ("$5 for `a` and $x_1$.", 1),
    ],
)
def test_only_mathematics_is_taken_for_mathematics(markdown: str, formulas: int) -> None:
    store = MathStore("test")
    kept = store.protect(markdown)
    assert len(store.formulas) == formulas
    assert store.restore(f"<p>{kept}</p>").count("<math ") == formulas


def test_a_formula_in_a_heading_leaves_its_id_valid() -> None:
    html = render_notebook(write_notebook("demo"), "demo").read_text(encoding="utf-8")
    assert re.search(r'<h1[^>]*id="[^"<]*math[^"<]*"', html)


def test_the_index_holds_verdicts_figures_controls_and_facts_in_that_order() -> None:
    fill("demo")
    html = build("demo").read_text(encoding="utf-8")
    assert page_problems(html) == []
    order = ("claim", "glance", "figures", "controls", "facts", "verdicts", "notebooks")
    places = [html.index(f'id="{name}"') for name in order]
    assert places == sorted(places)
    main = html[places[0] : places[1]]  # the paper's first claim, with all that a verdict needs
    assert all(x in main for x in ("+0.198", "+0.200 [+0.100, +0.300]", "200", "direction only"))
    assert "2 verdicts" in html and "each on 200 users and 3 seeds" in html
    assert "01_per_user" in html and 'id="verdicts-01_per_user"' in html
    assert "<h3>The paper&#39;s claims: 1 direction only, 1 not run at this scale</h3>" in html
    assert 'href="#v0"' in html and '<tr role="row" id="v0">' in html  # a mark leads to its row
    assert "+0.200 [+0.100, +0.300]" in html and "direction only" in html
    assert "The edit &lt;b&gt;helps&lt;/b&gt;" in html
    assert "§ 4.2 · slope, nats</span>" in html  # a number that is no change names its unit
    assert 'href="tables/06_controls.csv"' in html and "Random directions." in html
    assert 'src="figures/01.png"' in html and 'href="html/01_per_user.html"' in html
    assert "Environment" in html and "torch" in html


def test_every_relative_link_of_the_index_leads_to_a_file() -> None:
    fill("demo")
    index = build("demo")
    html = index.read_text(encoding="utf-8")
    links = [x for x in re.findall(r'(?:href|src)="([^"]+)"', html) if not x.startswith("#")]
    assert len(links) >= 6
    assert [link for link in links if not (index.parent / link).is_file()] == []
    anchors = re.findall(r'href="#([^"]+)"', html)
    assert anchors and all(f'id="{anchor}"' in html for anchor in anchors)


def test_only_the_paper_profile_goes_without_a_banner() -> None:
    for profile in ("demo", "laptop", "paper"):
        fill(profile)
        html = build(profile).read_text(encoding="utf-8")
        assert ('class="banner"' in html) == (profile != "paper")
        assert f"re-run: {profile} profile" in html


def test_building_twice_gives_the_same_bytes_and_keeps_the_clock_out() -> None:
    fill("demo")
    folder = paths.outputs_dir("demo")
    build("demo")
    first = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    build("demo")
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == first
    assert (folder / "measured" / "machine.json").is_file()


def test_an_index_without_any_result_says_so() -> None:
    html = build("demo").read_text(encoding="utf-8")
    assert "No verdict has been computed" in html and page_problems(html) == []


def test_a_sidecar_of_another_profile_is_refused() -> None:
    fill("demo")
    side = paths.figures_dir("demo") / "01.json"
    side.write_text(side.read_text().replace('"demo"', '"paper"'))
    with pytest.raises(UserError, match="paper"):
        build("demo")


def test_the_page_shows_the_facts_of_the_run_and_not_of_whoever_builds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill("demo")
    recorded = (paths.outputs_dir("demo") / "run_facts.json").read_text()
    python = json.loads(recorded)["python"]
    monkeypatch.setattr("platform.python_version", lambda: "9.9.9")
    text = build("demo").read_text(encoding="utf-8")
    assert f"<dd>{python}</dd>" in text and "9.9.9" not in text
    assert (paths.outputs_dir("demo") / "run_facts.json").read_text() == recorded


def test_a_page_without_recorded_facts_says_so() -> None:
    fill("demo")
    (paths.outputs_dir("demo") / "run_facts.json").unlink()
    assert "No notebook has recorded what it ran on." in build("demo").read_text(encoding="utf-8")


def test_notebooks_that_end_together_keep_each_others_hashes() -> None:
    names = [f"users {number}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: save_run_facts("demo", {name: "abc"}), names))
    assert set(load_run_facts(paths.outputs_dir("demo"))["data"]) == set(names)


def test_run_facts_keep_the_data_hashes_and_name_no_machine() -> None:
    save_run_facts("demo", {"world": "abc"})
    facts = save_run_facts("demo")
    assert facts["data"] == {"world": "abc"}
    assert load_run_facts(paths.outputs_dir("demo")) == facts
    assert "model" not in facts["cpu"] and str(paths.root()) not in str(facts)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<script src="a.js"></script>', "script"),
        ('<img src="a.png">', "alt"),
        ('<img src="//cdn.org/a.png" alt="x">', "loads"),
        ('<link rel="stylesheet" href="https://cdn.org/a.css">', "loads"),
        ("<style>@import 'https://cdn.org/a.css';</style>", "loads"),
        ("<style>p { background: url(http://cdn.org/a.png) }</style>", "loads"),
        ('<p style="background:url(https://cdn.org/a)">x</p>', "loads"),
        ('<p onclick="x()">x</p>', "onclick"),
        ('<a href="javascript:x()">x</a>', "loads"),
        ("<h3>deep</h3>", "jump"),
        ("<h1>second</h1>", "h1"),
    ],
)
def test_the_page_checker_finds_each_fault(body: str, problem: str) -> None:
    page = "<html lang='en'><body><h1>t</h1>{}</body></html>"
    assert page_problems(page.format("")) == []
    assert any(problem in found for found in page_problems(page.format(body)))


def test_the_page_checker_allows_links_comments_and_data() -> None:
    page = (
        "<html lang='en'><style>/* url(http://x.org) */ p{background:url(data:image/png;base64,A)}"
        "</style><h1>t</h1><a href='https://arxiv.org/abs/2503.01048'>paper</a>"
        "<img alt='dot' src='data:image/png;base64,AA//BB'></html>"
    )
    assert page_problems(page) == []
    assert page_problems("<html><h1>t</h1></html>") == ["<html> has no lang attribute"]
