"""The pieces of notebooks 00 to 02: one user, Table 1 and Table 2.

The constants are those of the studies themselves; a test compares them.
"""

from __future__ import annotations

from chameleon_lib.kit.forecast.cell import FULL_CCS, Cell
from chameleon_lib.kit.forecast.known import MODELS, Model
from chameleon_lib.kit.forecast.scope import Scope, base, directions, union

PLAIN = ("official", "official_history", "instruct", "personalised", "neutral")
DIRECTIONS = (
    "chameleon", "chameleon_top5", "from_neutral", "mean_difference", "shuffled_pairs", "p_only",
    "n_only", "svd_diff", "logistic", "permute_answers", "answer_only",
)  # fmt: skip
FITS = ("fitted", "fitted_gold", "fitted_shuffled")
LLM_REC = ("llm_rec", "llm_rec_comb", "llm_rec_basic")
RIVALS = ("ALOE", "DPO")
RANDOM_DRAWS = 5
SHOWN = (*FITS, "chameleon", "random 0", "from_neutral", "shuffled_pairs")  # in Table 2
SIZED = ("chameleon", "fitted", "from_neutral", "fitted_shuffled", "random/0")
SIZED_USERS = 8
COMMON_TEST, COMMON_STEPS, COMMON_ARMS = 100, 20, 11


def table1(scope: Scope, model: Model, task: str, *, answers: bool = True) -> Cell:
    """Every edit and training of Table 1 and, with ``answers``, all of its arms."""
    profile, train, test, group = scope.profile, scope.train, scope.test, scope.group
    rivals = model.id in profile.studied
    draws = scope.n_draws if rivals else min(profile.repeats, scope.n_draws)
    cell = base(scope, scope.cell(model, task), train, test)
    # Three sets of directions are looked at closely, and the shuffled control has a probe, too.
    directions(cell, train, group, draws, fits=3 * FULL_CCS + 1)
    kept = cell.shape.kept
    cell.activations("answer_only", kept * union(train, group, draws), context=False)
    for draw in range(draws):
        cell.activations(f"permuted {draw}", kept * group)
        cell.fits(f"draw {draw}", group, FITS)
        if rivals:
            cell.aloe(f"draw {draw}", group)
            cell.dpo(f"draw {draw}", kept * group)
    if not answers:
        return cell
    for kind in PLAIN:
        cell.exam("table 1", kind, ("plain",), test)
    if rivals:
        cell.said("train", train)
        cell.llm_rec(test, tuple(v for v in LLM_REC if task != "LaMP_7" or v != "llm_rec_comb"))
    randoms = tuple(f"random {number}" for number in range(-(-RANDOM_DRAWS // draws)))
    for draw in range(draws):
        arms = tuple(f"{name}/{draw}" for name in (*DIRECTIONS, *FITS, *randoms))
        cell.exam("table 1", "instruct", arms, test)
        cell.exam("table 1", "personalised", (f"chameleon/{draw}", f"fitted/{draw}"), test)
        for name in SIZED:
            cell.asked(f"size of {name} {draw}", "instruct", min(SIZED_USERS, test))
        for name in RIVALS if rivals else ():
            cell.exam(f"{name} {draw}", "instruct", ("plain",), test)
            cell.said(f"{name} seen {draw}", group)
    return cell


def quickstart(scope: Scope) -> list[Cell]:
    """Notebook 00; outside the demo it runs on an embedded model, which is not counted."""
    if not scope.embedded_world:
        return []
    cell = scope.cell(MODELS["demo:decoder:0"], "LaMP_2")
    train, group = scope.profile.n_train, min(scope.profile.group_size, scope.profile.n_train)
    cell.insights("train", train)
    cell.insights("test", 1)
    cell.pairs("train", group)
    directions(cell, train, group, 1)
    cell.fits("draw 0", group, ("fitted",))
    for kind in ("instruct", "personalised"):
        cell.exam("tour", kind, ("plain", "edit", "fitted"), 1)
    return [cell]


def per_user(scope: Scope) -> list[Cell]:
    """Notebook 01."""
    return [
        table1(scope, model, task)
        for model in scope.models(studied=False)
        for task in scope.profile.tasks
    ]


def unseen_users(scope: Scope) -> list[Cell]:
    """Notebook 02: the edits and trainings of Table 1, asked with and without a history."""
    cells = []
    for model in scope.models(studied=True):
        for task in scope.profile.tasks:
            cell = table1(scope, model, task, answers=False)
            arms = [f"{name}/{draw}" for name in SHOWN for draw in range(scope.n_draws)]
            for label, kind in (("table 1", "instruct"), ("table 2", "unseen")):
                cell.exam(label, kind, ("plain", *arms), scope.test)
            for draw in range(scope.n_draws):
                for name in RIVALS:
                    for kind in ("instruct", "unseen"):
                        cell.exam(f"{name} {draw}", kind, ("plain",), scope.test)
            cells.append(cell)
            if scope.embedded_world and task != "LaMP_7":
                cells.append(_common_taste(scope, model, task))
    return cells


def _common_taste(scope: Scope, model: Model, task: str) -> Cell:
    test, group = scope.part(scope.profile.n_test, COMMON_TEST), scope.group
    cell = base(scope, scope.cell(model, task, "common taste"), scope.train, test)
    cell.fit_steps = min(cell.fit_steps, COMMON_STEPS)
    # Both readings of the pair texts, each with a main direction and the shuffled control.
    directions(cell, scope.train, group, scope.n_draws, fits=2 * (FULL_CCS + 1))
    bare = cell.shape.kept * union(scope.train, group, scope.n_draws)
    cell.activations("no history", bare, context=False)
    arms = ["plain"]
    for draw in range(scope.n_draws):
        cell.fits(f"draw {draw}", group, ("fitted",))
        cell.fits(f"bare {draw}", group, ("fitted", "fitted_shuffled"), kind="unseen")
        arms += [f"{number}/{draw}" for number in range(COMMON_ARMS)]
    cell.exam("common taste", "unseen", tuple(arms), test)
    return cell
