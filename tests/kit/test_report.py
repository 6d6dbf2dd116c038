"""Pages load nothing, run nothing, describe every picture, and come back byte for byte."""

from __future__ import annotations

import json
import platform
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup, Tag

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.facts import cpu_model, load_run_facts, save_run_facts
from chameleon_lib.kit.figures import dot_ci, save_figure
from chameleon_lib.kit.pages import MathStore, code_of, render_notebook
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.report import MARKS, build, figure_groups, glance
from chameleon_lib.kit.stats import STATUSES, Estimate, mcnemar, verdict
from chameleon_lib.kit.tables import estimate_columns, show_table
from chameleon_lib.kit.verdicts import Verdict
from tests.kit.html_pages import broken, page_problems, soup

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
    publish = Publisher(profile, "01_per_user")
    publish(frame, "06_controls", "Random directions.", kind="control", made_by=Publisher.show)
    publish(frame, "01_effect", "Effect.", made_by=mcnemar)
    ours = Verdict("The edit <b>helps</b>", "4.2", "01_per_user", "+0.198", EFFECT,
                   "direction only", 200, 3, "accuracy (LaMP evaluator)", "tables/01_effect.csv",
                   task="LaMP-2", model="decoder", measure="slope, nats")  # fmt: skip
    other = replace(ours, words="It beats ALOE", csv="", ours=replace(EFFECT, value=0.21))
    missing = replace(ours, words="It beats DPO", ours=None, status="not run at this scale",
                      n=0, seeds=0, task="", model="")  # fmt: skip
    publish.verdicts([ours, other, missing], made_by=verdict)
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
    assert "Not the paper's numbers." in html or "Not the paper&#39;s numbers." in html


def test_a_wide_table_of_markdown_can_be_scrolled_by_keyboard() -> None:
    rows = "| *route* & scale | `a b` |\n|---|---|\n| in code: `<table>` | 2 |\n"
    text = f"# One\n\n{rows}\n\nand\n\n| other |\n|---|\n| 1 |\n"
    page = BeautifulSoup(
        render_notebook(write_notebook("demo", text), "demo").read_text(encoding="utf-8"),
        "html.parser",
    )
    regions = page.select("div.table-scroll[role=region][tabindex='0']")
    names = [region["aria-label"] for region in regions]
    assert names == ["Table of route & scale, a b", "Table of other", "Effect"]
    assert [len(region.find_all("table")) for region in regions] == [1, 1, 1]
    assert regions[0].code is not None and "in code: <table>" in regions[0].get_text()


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


def test_the_index_holds_verdicts_figures_controls_and_facts_in_that_order() -> None:
    fill("demo")
    index = build("demo")
    html = index.read_text(encoding="utf-8")
    assert page_problems(html) == [] and broken(index) == []
    order = ("claim", "glance", "figures", "controls", "facts", "verdicts", "notebooks")
    places = [html.index(f'id="{name}"') for name in order]
    assert places == sorted(places)
    main = html[places[0] : places[1]]  # the paper's first claim, with all that a verdict needs
    assert all(x in main for x in ("+0.198", "+0.200 [+0.100, +0.300]", "200", "direction only"))
    assert 'href="#v0"' in html and '<tr role="row" id="v0">' in html  # a mark leads to its row
    assert "The edit &lt;b&gt;helps&lt;/b&gt;" in html
    assert "§ 4.2 · slope, nats</span>" in html  # a number that is no change names its unit
    assert 'href="tables/06_controls.csv"' in html and 'src="figures/01.png"' in html
    assert f"<dd>{load_run_facts(index.parent)['python']}</dd>" in html and "torch" in html


def test_a_number_leads_to_its_table_and_to_the_function_that_made_it() -> None:
    fill("demo")
    stale = paths.outputs_dir("demo") / "html" / "code" / "gone.html"
    paths.replace_text(stale, "old")
    index = build("demo")
    rows = [soup(index).find(id=f"v{number}") for number in (0, 1)]
    links = [[a["href"] for a in row.find_all("a")] for row in rows if isinstance(row, Tag)]
    page, code = "html/01_per_user.html", "html/code/kit.stats.html#"
    assert links[0] == ["tables/01_effect.csv", page, f"{code}mcnemar"]
    # No table holds this number: the list of verdicts does, and the rule that judged made it.
    assert links[1] == ["verdicts/01_per_user.csv", page, f"{code}verdict"]
    html = (index.parent / "html" / "code" / "kit.stats.html").read_text(encoding="utf-8")
    assert page_problems(html) == [] and not stale.exists()
    source = (paths.package_dir() / "kit" / "stats.py").read_text(encoding="utf-8").splitlines()
    number = next(i for i, line in enumerate(source, 1) if line.startswith("def mcnemar("))
    block = html.split('id="mcnemar">')[1]
    assert block.split("</i>")[0].endswith(str(number)) and ">mcnemar<" in block.split("\n")[0]
    method = soup(index.parent / "html" / "code" / "kit.publish.html").find(id="Publisher.show")
    assert isinstance(method, Tag) and method.get_text().count("def ") == 1
    notebook = (index.parent / page).read_text(encoding="utf-8")
    assert 'href="code/kit.stats.html#mcnemar"' in notebook


@pytest.mark.parametrize(
    "made_by",
    ["", "__main__:mine", "chameleon_lib.kit.gone:f", "chameleon_lib.kit.stats:McNemar.gone"],
)
def test_what_the_library_does_not_have_gets_no_link(made_by: str) -> None:
    assert code_of({"made_by": made_by}) is None and code_of({}) is None


def test_only_the_paper_profile_goes_without_a_banner() -> None:
    for profile in ("demo", "laptop", "paper"):
        fill(profile)
        html = build(profile).read_text(encoding="utf-8")
        assert ('class="banner"' in html) == (profile != "paper")
        assert f"re-run: {profile} profile" in html


def test_a_run_under_way_says_so_and_writes_the_page_of_what_has_finished() -> None:
    fill("demo")
    own = paths.outputs_dir("demo") / "html" / "01_per_user.html"
    page = build("demo", [], "1 of 2 notebooks are still to come.").read_text("utf-8")
    assert '<p class="banner" role="status">1 of 2 notebooks are still to come.</p>' in page
    assert not own.exists()
    build("demo", ["01_per_user"], "None is still to come.")
    assert own.exists()
    assert 'role="status"' not in build("demo").read_text("utf-8")


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
    facts = paths.outputs_dir("demo") / "run_facts.json"
    recorded = facts.read_text(encoding="utf-8")
    monkeypatch.setattr("platform.python_version", lambda: "9.9.9")
    assert "9.9.9" not in build("demo").read_text(encoding="utf-8")
    assert facts.read_text(encoding="utf-8") == recorded
    facts.unlink()
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
    exact = [platform.python_version(), cpu_model(), platform.platform()]
    assert not [word for word in [*exact, str(paths.root())] if word in str(facts)]
    machine = paths.measured_dir("demo") / "machine.json"
    assert json.loads(machine.read_text(encoding="utf-8"))["python"] == exact[0]


ONE = Verdict(
    "the edit helps", "4.2", "01_per_user", "+0.198", EFFECT, "reproduced", 200, 3, "accuracy",
    "tables/01.csv", task="LaMP-3", model="decoder", measure="mae change", plain=True,
)  # fmt: skip
TWO = replace(ONE, task="LaMP-2", status="opposite",
              ours=Estimate(-0.004, -0.006, -0.002, 150, 3), n=150)  # fmt: skip
DPO = replace(ONE, words="it beats DPO", measure="slope, nats", plain=False)
MINE = replace(ONE, words="ours helps", own=True, status="holds")
MISSING = replace(DPO, ours=None, status="not run at this scale", n=0, seeds=0)


def test_a_claim_is_one_row_over_all_its_settings() -> None:
    nowhere = replace(ONE, task="", model="")
    matrix = glance([(3, ONE), (1, TWO), (2, DPO), (4, MISSING), (0, nowhere)])
    assert matrix["columns"] == [("LaMP-2", "decoder"), ("LaMP-3", "decoder")]
    assert matrix["heads"] == [("LaMP-2", 1), ("LaMP-3", 1)]
    cells = [[[(m["number"], m["sign"], m["value"]) for m in cell] for cell in row["cells"]]
             for row in matrix["rows"]]  # fmt: skip
    # The mark of a small effect says that it is not nothing; anchors number the whole list.
    assert cells[0] == [[(1, "⇄", "−0.004")], [(3, "✓", "+0.20")]]
    assert cells[1] == [[], [(2, "✓", "+0.20"), (4, "–", "")]]
    assert [row["unit"] for row in matrix["rows"]] == ["", "slope, nats"]
    assert set(MARKS) == set(STATUSES)


def test_one_figure_per_section_of_the_paper_is_open_and_the_rest_on_demand() -> None:
    ids = ["00_pca", "01_alone", "01_effects_LaMP_2", "01_effects_LaMP_3", "06_directions"]
    facts = {"01_per_user": {"figure": "01_effects"}, "06_x": {"figure": "06", "controls": True}}
    groups = figure_groups([{"id": name} for name in ids], {"01_per_user": "Users"}, facts)
    shown = [(g["stem"], g["first"] and g["first"]["id"], len(g["rest"]), g["controls"])
             for g in groups]  # fmt: skip
    assert shown == [
        ("01_per_user", "01_effects_LaMP_2", 2, False),
        ("06_x", "06_directions", 0, True),
        ("00", None, 1, False),
    ]


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
    link = "<a href='https://arxiv.org/abs/2503.01048'>paper</a>"  # loads nothing by itself
    assert page_problems(page.format(link)) == []
    assert any(problem in found for found in page_problems(page.format(body)))
