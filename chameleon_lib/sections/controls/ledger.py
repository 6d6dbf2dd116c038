"""The tables of the ambiguity ledger: every reading beside the default, and the open points.

Only counting and resampling; ``run`` is always that of
:mod:`chameleon_lib.sections.controls.study`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.kit.stats import Estimate
from chameleon_lib.kit.tables import estimate_columns, part_columns
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.controls.tables import counts_last
from chameleon_lib.sections.controls.variants import DEFAULT, VARIANTS, Variant, ledger_rows
from chameleon_lib.sections.estimates import having, where_defined
from chameleon_lib.sections.paired import Term, contrast, difference, widened
from chameleon_lib.sections.results import FAMILY_TITLES, Cell, Run


def ledger_tests(run: Run) -> int:
    """How many readings are compared in one table: families × readings that gave answers."""
    return sum(
        bool(having(run.of(task, family, name), "chameleon"))
        for task in run.data
        for family in run.families
        for name in run.conditions
        if name != DEFAULT
    )


def ledger_effects(run: Run) -> pd.DataFrame:
    """Every reading against the default edit and against Instruct, with Bonferroni widths.

    Two questions are asked of every reading. Does it move the answers: is the edited model right
    more or less often than under the defaults (``against the default``)? And does it move what the
    edit does: does the edit add more or less to the same prompt without it (``added``)? Another
    prompt may answer the first alone. ``matters`` names what the widened interval, which covers all
    comparisons of a question at once, leaves 0 out of: "answers", "edit", both, or "no".

    ``answers changed`` is the share of answers that differ from the default edit's; where it is 0
    the reading is the same edit here.
    """
    rows, tests = [], ledger_tests(run)
    for task in run.data:
        metric = get_task(task).metrics[0]
        for family in run.families:
            for variant in VARIANTS:
                cells = having(run.of(task, family, variant.title), "chameleon")
                if not cells:
                    continue
                moved = against_default(run, task, family, variant, metric)
                added = added_to_default(run, task, family, variant, metric)
                row: dict[str, Any] = {
                    "task": task.replace("_", "-"),
                    "family": FAMILY_TITLES[family],
                    "id": variant.id,
                    "reading": variant.name,
                    "metric": metric,
                    **estimate_columns(moved, "against the default"),
                    **_bounds(widened(moved, tests), "against the default, widened"),
                    **estimate_columns(added, "added, against the default"),
                    **_bounds(widened(added, tests), "added, widened"),
                    "matters": " and ".join(
                        name
                        for name, found in (("answers", moved), ("edit", added))
                        if not widened(found, tests).low <= 0 <= widened(found, tests).high
                    )
                    or "no",
                }
                for other, column in (("instruct", "against Instruct"), (variant.prompt, "added")):
                    found = difference(run, cells, "chameleon", other, metric)
                    row |= estimate_columns(found, column)
                margin = where_defined(
                    difference, run, cells, "chameleon", variant.prompt, "margin"
                )
                row |= part_columns(margin, "added margin")
                row["answers changed"] = _answers_changed(run, task, family, variant)
                row["layers"] = _layers(cells)
                rows.append(row)
    return counts_last(pd.DataFrame(rows))


def _bounds(found: Estimate, name: str) -> dict[str, float]:
    return {f"{name}_low": found.low, f"{name}_high": found.high}


def against_default(
    run: Run, task: str, family: str, variant: Variant, metric: str, method: str = "chameleon"
) -> Estimate:
    """The edited model under a reading minus the same by default, from the same groups."""
    return contrast(run, _moved(run, task, family, variant, method), metric)


def added_to_default(
    run: Run, task: str, family: str, variant: Variant, metric: str, method: str = "chameleon"
) -> Estimate:
    """What the edit adds to the prompt of a reading minus what it adds by default."""
    cells = having(run.of(task, family, variant.title), method)
    default = [cell for cell in run.of(task, family, DEFAULT)
               if cell.backbone in {other.backbone for other in cells}]  # fmt: skip
    plain = [Term(-1, cells, variant.prompt), Term(1, default, "instruct")]
    return contrast(run, [*_moved(run, task, family, variant, method), *plain], metric)


def _moved(run: Run, task: str, family: str, variant: Variant, method: str) -> list[Term]:
    cells = having(run.of(task, family, variant.title), method)
    default = {cell.backbone: cell for cell in run.of(task, family, DEFAULT)}
    # The default with the groups alone in which the other reading gave an edit.
    matched = [default[cell.backbone].in_draws(cell.drawn, method) for cell in cells]
    return [Term(1, cells, method), Term(-1, matched, method)]


def refused_readings(run: Run) -> list[str]:
    """One sentence per reading, backbone and reason that gave no edit in some group."""
    found = []
    for cell in run.cells:
        said = [log["refused"] for log in cell.draws if "refused" in log]
        for sentence in dict.fromkeys(said):
            found.append(
                f"{cell.backbone}: '{cell.condition}' gave no edit in {said.count(sentence)} of "
                f"{len(cell.draws)} groups. {sentence}"
            )
    return found


def ledger(run: Run) -> pd.DataFrame:
    """One row per open point: varied here, shown elsewhere, or why nothing can be run."""
    frame = pd.DataFrame(ledger_rows(run.profile, run.settings))
    users = max(len(ids) for ids in run.test_users.values())
    seeds = max(len(cell.draws) for cell in run.cells)
    return frame.assign(n=users, seeds=seeds)


def _answers_changed(run: Run, task: str, family: str, variant: Variant) -> float:
    default = {cell.backbone: cell for cell in run.of(task, family, DEFAULT)}
    shares = []
    for cell in having(run.of(task, family, variant.title), "chameleon"):
        before = default[cell.backbone].in_draws(cell.drawn, "chameleon").answers["chameleon"]
        for one, other in zip(cell.answers["chameleon"], before, strict=True):
            shares.append(np.mean([a != b for a, b in zip(one.texts, other.texts, strict=True)]))
    return float(np.mean(shares))


def _layers(cells: Sequence[Cell]) -> str:
    logs = [log for cell in cells for log in cell.draws if "refused" not in log]
    return " | ".join(",".join(map(str, log["layers"])) or "none" for log in logs)
