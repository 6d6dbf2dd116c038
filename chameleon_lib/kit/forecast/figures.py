"""The pieces of notebooks 03 to 06: the figures of sections 4.4 to 4.6, and the controls.

The constants are those of the studies themselves; a test compares them. Left out, because they are
far below the rest: sentence embeddings, the SVD, and the users of figure 4 who are only timed.
"""

from __future__ import annotations

from chameleon_lib.kit.forecast.cell import FULL_CCS, Cell
from chameleon_lib.kit.forecast.known import Model
from chameleon_lib.kit.forecast.scope import Scope, base, directions
from chameleon_lib.kit.forecast.tables import RIVALS, per_user

GROUP_TASKS = ("LaMP_2", "LaMP_3")
SHARES = ((0.4, 0.07), (0.6, 0.23), (0.8, 0.39), (1.0, 0.55))  # of pairs and of gold answers
ITEMS, PAPER_ITEMS = (5, 10, 15, 20, 25), 10
CONTROL_RULES = ("pca raw", "random", "recent", "nearest")
HISTORY_DEMO = (66, 102, 44)  # train users, test users, group
HISTORY_ITEMS = 30  # in the demo's world with longer histories
DOSES, DOSE_DEMO = 3, (80, 145, 50)  # train users, test users, group
LEDGER_TASK = "LaMP_2"
# Readings whose edit Table 1 does not have; those with pairs of their own, with other activations
# of the same pairs, and with other prompts: embedded world, official files.
LEDGER = {True: (34, 1, 7, 2), False: (45, 12, 7, 12)}
STRENGTHS = 3  # of the fitted edit, beside Table 1's


def group_size(scope: Scope) -> list[Cell]:
    """Notebook 03: nested groups, and single users."""
    cells, test = [], scope.test
    sizes = sorted({min(size, scope.train) for size in scope.sizes if size > 1})
    for model in scope.models(studied=True):
        for task in (task for task in GROUP_TASKS if task in scope.profile.tasks):
            cell = base(scope, scope.cell(model, task), scope.train, test)
            cell.pairs("test", test)
            cell.activations("test", cell.shape.kept * test)
            cell.ccs("single users", cell.shape.kept * test, 1)
            directions(cell, scope.train, sizes[-1], scope.n_draws)
            arms = ["own/chameleon"]
            for draw in range(scope.n_draws):
                arms += [f"{who}/random {draw}" for who in ("own", "other")]
                arms.append(f"other/chameleon {draw}")
                for size in sizes:
                    arms += _rung(scope, cell, size, draw, size in (sizes[0], sizes[-1]))
            cell.exam("figure 3", "instruct", tuple(arms), test)
            cells.append(cell)
    return cells


def _rung(scope: Scope, cell: Cell, size: int, draw: int, ends: bool) -> list[str]:
    """The edits of one group; arms that Table 1 has are noted under its name."""
    fits: tuple[str, ...] = ("fitted",) if ends or not scope.embedded_world else ()
    fits += ("fitted_shuffled",) if ends else ()
    names = ("chameleon", "random 0", *fits, *(("from_neutral", "shuffled_pairs") if ends else ()))
    if size == scope.group:
        cell.fits(f"draw {draw}", size, fits)
        arms = tuple(f"{name}/{draw}" for name in names)
        cell.exam("table 1", "instruct", arms, scope.test)
        return []
    cell.ccs(f"{size} users {draw}", cell.shape.kept * size, FULL_CCS + ends)
    if fits:
        cell.fits(f"{size} users {draw}", size, fits)
    return [f"{size}/{name}/{draw}" for name in names]


def time_budget(scope: Scope) -> list[Cell]:
    """Notebook 04: every method on shares of its material."""
    cells, test, demo = [], scope.test, scope.embedded_world
    size = scope.group if demo else scope.train
    points = (*SHARES[:2], SHARES[-1]) if demo else SHARES
    for model in scope.models(studied=True):
        cell = base(scope, scope.cell(model, "LaMP_2"), scope.train, test)
        kept, arms = cell.shape.kept, ["plain"]
        directions(cell, scope.train, size, scope.n_draws)
        cell.said("train", scope.train)
        for draw in range(scope.n_draws):
            for share, gold in points:
                name = f"{share:g} of {size}, draw {draw}"
                if share == 1 and size == scope.group:  # Table 1's own
                    cell.fits(f"draw {draw}", size, ("fitted",))
                    cell.dpo(f"draw {draw}", kept * size)
                    cell.exam(f"DPO {draw}", "instruct", ("plain",), test)
                    edits = (f"chameleon/{draw}", f"fitted/{draw}")
                    cell.exam("table 1", "instruct", edits, test)
                else:
                    cell.ccs(name, kept * share * size, FULL_CCS)
                    cell.fits(name, share * size, ("fitted",))
                    arms += [f"chameleon {name}", f"fitted {name}"]
                    cell.dpo(name, kept * share * size)
                    cell.exam(f"DPO {name}", "instruct", ("plain",), test)
                cell.aloe(name, size, gold)
                cell.exam(f"ALOE {name}", "instruct", ("plain",), test)
            for rival, asked in zip(RIVALS, (points[-1][1] * size, kept * size), strict=True):
                cell.said(f"{rival} seen share {draw}", asked)
        cell.exam("figure 4", "instruct", tuple(arms), test)
        cells.append(cell)
    return cells


def history_conditions(demo: bool) -> list[tuple[str, int, str]]:
    """Rule, number of items, and arms of every condition, as the study names them."""
    if not demo:
        rules = ("pca", *CONTROL_RULES)
        return [(rule, k, "fitted") for rule in rules for k in ITEMS]
    found = [("pca", k, "fitted" if k == PAPER_ITEMS else "edit") for k in ITEMS]
    arms = {"random": "edit"}
    return found + [(rule, PAPER_ITEMS, arms.get(rule, "prompts")) for rule in CONTROL_RULES]


def history_ablation(scope: Scope) -> list[Cell]:
    """Notebook 05: everything anew for every selection."""
    demo, cells = scope.embedded_world, []
    limits = HISTORY_DEMO if demo else (0, 0, 0)
    train, test = (scope.part(n, limit) for n, limit in
                   zip((scope.profile.n_train, scope.profile.n_test), limits, strict=False))
    group = min(scope.group, limits[2] or scope.group, train)
    tasks = GROUP_TASKS[:1] if demo else GROUP_TASKS
    for model in scope.models(studied=True):
        for task in (task for task in tasks if task in scope.profile.tasks):
            for rule, k, arms_of in history_conditions(demo):
                shared = not demo and (rule, k) == ("pca", PAPER_ITEMS)
                where = "" if shared else f"{rule}, {k} items"
                cell = scope.cell(model, task, where, k, HISTORY_ITEMS if demo else 0)
                cell.insights("test", test)
                if not demo:
                    cell.pairs("test", test)
                arms = ["plain"]
                if arms_of != "prompts":
                    cell.insights("train", train)
                    cell.pairs("train", train)
                    directions(cell, train, group, scope.n_draws)
                    arms += [f"chameleon/{draw}" for draw in range(scope.n_draws)]
                if arms_of == "fitted":
                    for draw in range(scope.n_draws):
                        cell.fits(f"draw {draw}", group, ("fitted",))
                        arms.append(f"fitted/{draw}")
                cell.exam("table 1", "instruct", tuple(arms), test)
                cell.exam("table 1", "personalised", ("plain",), test)
                cells.append(cell)
    return cells


def controls(scope: Scope) -> list[Cell]:
    """Notebook 06: Table 1 again, one reading of every open point, and weaker tastes."""
    cells, test, draws = per_user(scope), scope.test, range(scope.n_draws)
    readings, repaired, read_anew, asked_anew = LEDGER[scope.embedded_world]
    for model in scope.models(studied=True):
        cell = scope.cell(model, LEDGER_TASK)
        for number in range(read_anew + repaired):
            name = f"reading {number}, "
            own = scope.cell(model, LEDGER_TASK, name)
            directions(own, scope.train, scope.group, scope.n_draws, fits=0)
            if number < repaired:
                own.insights("train", scope.train)
                own.pairs("train", scope.train)
            cells.append(own)
        for number in range(asked_anew):
            cell.exam(f"prompts {number}", "instruct", ("plain",), test)
        names = [f"{number}/{draw}" for number in range(readings) for draw in draws]
        for name in names:
            cell.ccs(f"reading {name}", cell.shape.kept * scope.group, 1)
        names += [f"fitted {number}/{draw}" for number in range(STRENGTHS) for draw in draws]
        cell.exam("ledger", "instruct", tuple(names), test)
        cells.append(cell)
        cells += [_dose(scope, model, dose) for dose in range(DOSES * scope.embedded_world)]
    return cells


def _dose(scope: Scope, model: Model, dose: int) -> Cell:
    limits = DOSE_DEMO
    train = scope.part(scope.profile.n_train, limits[0])
    test = scope.part(limits[1])
    group = min(scope.group, train, limits[2])
    cell = scope.cell(model, LEDGER_TASK, f"dose {dose}")
    cell.insights("train", train)
    cell.pairs("train", train)
    directions(cell, train, group, scope.n_draws, fits=1)
    arms = ["plain"]
    for draw in range(scope.n_draws):
        cell.fits(f"draw {draw}", group, ("fitted",))
        arms += [f"{name}/{draw}" for name in ("chameleon", "fitted", "random")]
    cell.exam("dose", "instruct", tuple(arms), test)
    return cell
