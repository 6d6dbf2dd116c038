"""Paired rounds, pairing and scaling, and how ratios and goals are shown."""

from __future__ import annotations

from collections.abc import Callable

from workshop.bench.measure import (
    COLUMNS,
    Goal,
    Ratio,
    Rounds,
    Row,
    markdown,
    run_chain,
    run_rounds,
)


def _fake_clock() -> tuple[Callable[[], float], Callable[[float], None]]:
    now = [0.0]

    def spend(seconds: float) -> None:
        now[0] += seconds

    return lambda: now[0], spend


def test_rounds_alternate_the_order_after_an_untimed_warm_up() -> None:
    clock, spend = _fake_clock()
    calls: list[tuple[str, int]] = []

    def variant(name: str, seconds: float) -> Callable[[int], str]:
        def run(number: int) -> str:
            calls.append((name, number))
            spend(seconds)
            return f"{name}{number}"

        return run

    rounds = run_rounds("x", {"a": variant("a", 6.0), "b": variant("b", 2.0)}, 3, clock)
    assert [name for name, _ in calls] == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert rounds.results == {"a": ["a0", "a1", "a2"], "b": ["b0", "b1", "b2"]}
    assert rounds.seconds == {"a": [6.0] * 3, "b": [2.0] * 3}


def test_a_ratio_pairs_rounds_before_it_takes_the_median() -> None:
    rounds = Rounds({"a": [1.0, 10.0, 6.0], "b": [1.0, 2.0, 2.0]}, {})
    assert rounds.ratio("a", "b") == Ratio(3.0, 1.0, 5.0, 3)
    assert rounds.ratio("a", "b", factor=10) == Ratio(30.0, 10.0, 50.0, 3)
    assert rounds.share("a", 2.0) == Ratio(3.0, 0.5, 5.0, 3)


def test_a_chain_compares_a_variant_with_the_references_on_both_sides() -> None:
    now, calls = [0.0], []
    speed = iter([1.0, 2.0, 3.0, 4.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0])  # the machine slows down

    def variant(name: str, work: float) -> Callable[[int], str]:
        def run(number: int) -> str:
            calls.append(name)
            now[0] += work * (next(speed) if len(calls) > 3 else 1.0)
            return f"{name}{number}"

        return run

    variants = {"ref": variant("ref", 1.0), "a": variant("a", 1.0), "b": variant("b", 3.0)}
    chain = run_chain("x", "ref", variants, 2, lambda: now[0])
    assert "".join(name[0] for name in calls[3:]) == "rarbr" + "rbrar"
    # a: 2 beside 1 and 3; b: 12 beside 3 and 5. The slowdown is no part of either.
    assert chain.ratios == {"a": Ratio(1.0, 1.0, 1.0, 2), "b": Ratio(3.0, 3.0, 3.0, 2)}
    assert chain.results == {n: [f"{n}0", f"{n}1"] for n in variants}


def test_rows_are_a_markdown_table() -> None:
    ratio = Ratio(31.234, 2.345, 456.7, 3)
    rows = [
        Row("what | it is", "small", "the slow one", ratio, Goal(30, True), True, "all equal"),
        Row("other", "small", "the slow one", ratio, None, False, "one differs"),
    ]
    lines = markdown(rows).splitlines()
    assert lines[0] == f"| {' | '.join(COLUMNS)} |"
    assert lines[2] == (
        "| what / it is | small | the slow one | 31.2 [2.35, 457] | ≥ 30 (met) | yes: all equal |"
    )
    assert lines[3].endswith("| – | no: one differs |")
    bare = Row("x", "small", "no edit", None, Goal(2, True), None, "not installed")
    assert bare.goal_met is None and bare.cells()[3] == "–" and bare.cells()[5] == "not installed"
