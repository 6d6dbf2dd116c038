"""What an edit does to the held-out queries of the users of one's own table: a look, no verdict."""

from __future__ import annotations

import numpy as np
import pandas as pd

from chameleon_lib.kit.bootstrap import Estimate, paired_bootstrap
from chameleon_lib.kit.stats import MIN_USERS, effect_word
from chameleon_lib.kit.tables import estimate_columns, part_columns
from chameleon_lib.lamp.metrics import higher_is_better, per_sample_scores
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.answering import Exam
from chameleon_lib.sections.data import without_gold
from chameleon_lib.sections.quickstart import Tour
from chameleon_lib.sections.scoring import reference_answers

_SCORE = {"LaMP_2": "accuracy", "LaMP_3": "abs_error", "LaMP_7": "rouge1"}


def held_out(tour: Tour) -> pd.DataFrame:
    """All held-out queries of the scored users with and without the edits.

    Returns:
        One row per arm: score and margin with their change over Instruct, 95 % intervals over
        users; ``n`` users, those of them who have a margin, ``queries``.
    """
    study, task = tour.study, tour.study.task
    test, _ = study.prepare(without_gold(tour.data.test))
    names = {user.user.id for user in test}
    golds = [str(q.gold) for user in tour.data.test if user.id in names for q in user.queries]
    owners = np.repeat(np.arange(len(test)), [len(user.user.queries) for user in test])
    reference = reference_answers(study, tour.data, test)
    arms = {
        "Instruct": ("instruct", None),
        "Instruct + edit (paper)": ("instruct", tour.edit),
        "Instruct + fitted edit (ours)": ("instruct", tour.fitted),
        "insight in the prompt": ("insight", None),
    }
    score = _SCORE[get_task(task).name]
    rows = []
    found = Exam(study, test, reference).answer(arms)
    levels = {
        name: (_by_user(per_sample_scores(task, golds, answers.texts)[score], owners),
               _by_user(answers.margin, owners))
        for name, answers in found.items()
    }  # fmt: skip
    base = levels["Instruct"]
    for name, (scores, margins) in levels.items():
        known = np.isfinite(margins)
        rows.append(
            {
                "prompt and edit": name,
                score: float(scores.mean()),
                **_columns(f"{score}_change", paired_bootstrap(scores, base[0])),
                "margin": float(margins[known].mean()) if known.any() else float("nan"),
                **part_columns(
                    paired_bootstrap(margins[known], base[1][known]) if known.any() else None,
                    "margin_change",
                ),
                "queries": len(golds),
                "n": len(test),
                "seeds": 1,
            }
        )
    return pd.DataFrame(rows)


def _columns(name: str, estimate: Estimate) -> dict[str, float | int]:
    columns = estimate_columns(estimate, name)
    return {key: value for key, value in columns.items() if key not in ("n", "seeds")}


def _by_user(values: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Mean of each user's defined values (users,); NaN where a user has none."""
    known = np.isfinite(values)
    counts = np.bincount(owners, weights=known, minlength=owners.max() + 1)
    sums = np.bincount(owners, weights=np.where(known, values, 0.0), minlength=owners.max() + 1)
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def conclusion(found: pd.DataFrame, task: str) -> list[str]:
    """What may be concluded from `held_out`, in sentences computed from it."""
    score = _SCORE[get_task(task).name]
    table = found.set_index("prompt and edit")
    n = int(found["n"].iloc[0])
    sentences = []
    for name in list(table.index)[1:]:
        row = table.loc[name]
        low, high = row[f"{score}_change_low"], row[f"{score}_change_high"]
        word = effect_word(low, high, n, higher_is_better=higher_is_better(score))
        sentences.append(
            f"{name}: {score} {row[score]:.3f}, {row[f'{score}_change']:+.3f} "
            f"[{low:+.3f}, {high:+.3f}] against Instruct{f': {word}' if word else ''}."
        )
    sentences.append(
        f"These are {n} users"
        + (
            f", fewer than the {MIN_USERS} that the kit asks for, so this is a look and no verdict."
            if n < MIN_USERS
            else "; notebook 01 with --data measures the same with controls and gives verdicts."
        )
    )
    return sentences
