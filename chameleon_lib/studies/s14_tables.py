"""Tables and a figure of the study of a real model, and what they let one conclude.

Every number is a mean over users with its interval; differences are paired over users.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.core.answers import form_scores, is_echo
from chameleon_lib.core.pairs import PreferencePair, keep_different
from chameleon_lib.core.task import get_task
from chameleon_lib.errors import UserError
from chameleon_lib.kit.figures import FigureOutput
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import Estimate, bootstrap_mean
from chameleon_lib.kit.tables import estimate_columns
from chameleon_lib.studies.frame import drawn, forest
from chameleon_lib.studies.s14_real_model import (
    CROSSED,
    EDITS,
    NATS,
    NO_EDIT,
    OWN_GROUP,
    POSTS,
    RANDOM,
    REVIEWS,
    SEEN,
    WRONG,
    RealRun,
    is_written,
)


def by_user(run: RealRun, arm: str, measure: str) -> np.ndarray:
    """(draws, users) means over a user's queries; users in one order for all arms."""
    rows = run.arms[run.arms["arm"] == arm]
    means = rows.pivot_table(index="draw", columns="user", values=measure, aggfunc="mean")
    return means.to_numpy(dtype=np.float64)


def level(run: RealRun, arm: str, measure: str) -> Estimate:
    """Mean of an arm over users, 95 % interval over users."""
    return bootstrap_mean(by_user(run, arm, measure))


def change(run: RealRun, arm: str, measure: str, against: str = NO_EDIT) -> Estimate:
    """An arm minus another, paired over users."""
    return bootstrap_mean(by_user(run, arm, measure), by_user(run, against, measure))


def arms_of(run: RealRun) -> list[str]:
    """Arms in the order of the tables."""
    return list(dict.fromkeys(run.arms["arm"]))


MEASURES = {
    POSTS: ("rouge1", "rouge1 stripped", "empty", "refusal", "preamble", "echo", "words"),
    REVIEWS: ("abs_error", "abs_error of labels", "valid", "empty", "refusal", "words"),
}


def results(run: RealRun) -> pd.DataFrame:
    """Every arm: gain per token over no edit, scores of its answers, and what must be said of it.

    Columns: ``arm``, the gain in nats per token with its interval, :data:`MEASURES` of the task
    (those with an interval are the first two), ``warning``, ``n`` users and ``seeds``.
    """
    rows = []
    for arm in filter(lambda arm: is_written((arm, 0)), arms_of(run)):
        row: dict[str, Any] = {"arm": arm}
        gain = change(run, arm, NATS)
        row |= estimate_columns(gain, f"gain, {NATS}")
        first, second, *others = MEASURES[run.study.task]
        for measure in (first, second):
            row |= estimate_columns(level(run, arm, measure), measure)
        row |= {name: float(by_user(run, arm, name).mean()) for name in others}
        row["warning"] = warning(run, arm)
        row["seeds"] = int(run.arms.loc[run.arms["arm"] == arm, "draw"].nunique())
        rows.append({**row, "n": row.pop("n"), "seeds": row.pop("seeds")})
    return pd.DataFrame(rows)


def gain_figure(table: pd.DataFrame, run: RealRun, publish: Publisher) -> FigureOutput:
    """The gains of :func:`results` as a forest plot, without the row that all are compared with."""
    data = drawn(table[table["arm"] != NO_EDIT], f"gain, {NATS}", "arm")
    return forest(
        publish,
        data,
        "14_gains",
        made_by=gain_figure,
        title=f"{run.study.backbone.name}: log-probability of the users' own posts",
        caption=(
            "Change in log-probability per token of what the users wrote, against no edit, with 95 "
            f"% intervals over {int(data['n'].iloc[0])} invented users"
        ),
        xlabel=f"gain in {NATS}",
        row="arm",
        reference_label="no edit",
    )


_UNUSABLE = {"empty": "empty", "refusal": "refusals", "echo": "repeat the query"}


def warning(run: RealRun, arm: str) -> str:
    """What makes the answers of an arm unfit for use; empty if nothing does."""
    told = []
    gain = change(run, arm, NATS)
    if gain.high < 0:
        told.append("the users' own texts are less likely")
    for name, words in _UNUSABLE.items():
        if name not in MEASURES[run.study.task]:
            continue
        share = float(by_user(run, arm, name).mean())
        before = float(by_user(run, NO_EDIT, name).mean())
        if share - before > 0.1:
            told.append(f"{share:.0%} {words} (no edit: {before:.0%})")
    rows = run.arms[run.arms["arm"] == arm]
    said = rows["answer"].str.strip()
    common = said.value_counts(normalize=True)
    if not get_task(run.study.task).labels and common.iloc[0] > 0.2:
        told.append(f"{common.iloc[0]:.0%} of the answers are one")
    return "; ".join(told)


def contrasts(run: RealRun) -> pd.DataFrame:
    """The differences that controls are for, in nats per token; what each would show if above 0.

    The edit of the user's own half against that of the other half; every edit against random
    directions; the fit on histories against one on other users' texts, of which the form alone is
    left, where there is one; the history's worth (own against another user's) without and with an
    edit.
    """
    rows = []

    def add(question: str, *terms: tuple[int, str]) -> None:
        if not {arm for _, arm in terms} <= set(arms_of(run)):
            return
        total = sum(weight * by_user(run, arm, NATS).mean(axis=0) for weight, arm in terms)
        found = bootstrap_mean(total)
        row: dict[str, Any] = {"question": question, **estimate_columns(found, NATS)}
        row["seeds"] = max(len(by_user(run, arm, NATS)) for _, arm in terms)
        row = {**row, "interval": side(found)}
        rows.append({**row, "n": row.pop("n"), "seeds": row.pop("seeds")})

    for edit in SEEN:
        own, title = OWN_GROUP.format(edit=EDITS[edit]), EDITS[edit]
        add(f"{title}: own half's minus the other half's", (1, own), (-1, title))
    for title in EDITS.values():
        add(f"{title} minus {RANDOM}", (1, title), (-1, RANDOM))
    ours, form = EDITS["fitted_history"], EDITS["fitted_format"]
    add(f"{ours} minus {form}", (1, ours), (-1, form))
    add("own history minus another user's, no edit", (1, NO_EDIT), (-1, WRONG))
    for edit in CROSSED:
        wrong = f"{EDITS[edit]}; {WRONG}"
        terms = ((1, EDITS[edit]), (-1, wrong), (-1, NO_EDIT), (1, WRONG))
        add(f"{EDITS[edit]}: what it adds to the own history's worth", *terms)
    return pd.DataFrame(rows)


def side(found: Estimate) -> str:
    """On which side of 0 an interval lies."""
    return "above 0" if found.low > 0 else "below 0" if found.high < 0 else "includes 0"


def pair_quality(run: RealRun) -> pd.DataFrame:
    """What the self-made pairs are made of: shares of each agent's answers, and how many differ.

    The fit learns to prefer ŷP over ŷN: whatever is commoner in ŷP than in ŷN is what it is taught.
    """
    kept, _ = keep_different(run.pairs, run.study.settings)
    rows = []
    said = {
        "ŷP, personalised": [pair.answer_p for pair in run.pairs],
        "ŷN, neutral": [pair.answer_n for pair in run.pairs],
        "what the users wrote": run.golds,
    }
    for name, texts in said.items():
        scores = form_scores(texts)
        row: dict[str, Any] = {"answers": name}
        row |= {f"{key}": float(scores[key].mean()) for key in ("empty", "refusal", "preamble")}
        sources = [pair.query for pair in run.pairs]
        row["echo"] = float(np.mean([is_echo(*pair) for pair in zip(texts, sources, strict=True)]))
        row["words"] = float(scores["words"].mean())
        task = get_task(run.study.task)
        row["valid"] = float(np.mean([task.is_valid(text) for text in texts]))
        rows.append(row | {"pairs": len(run.pairs), "pairs that differ": len(kept)})
    users = len(run.users)
    return pd.DataFrame(rows).assign(n=users, seeds=1)


def insights(run: RealRun, n: int = 6) -> pd.DataFrame:
    """What the model concludes about the first users of both halves, beside two of their texts."""
    both = zip(*(half.users for half in run.halves), strict=False)
    users = [user for pair in both for user in pair]
    return pd.DataFrame(
        {
            "user": [user.user.id for user in users[:n]],
            "two of the texts": [" / ".join(i.text for i in user.items[:2]) for user in users[:n]],
            "insight (P)": [user.insight_p for user in users[:n]],
            "neutral insight (N)": [user.insight_n for user in users[:n]],
        }
    )


def pair_examples(run: RealRun, n: int = 6) -> pd.DataFrame:
    """One pair of each of the first users, with what the user wrote."""
    chosen = dict[str, tuple[PreferencePair, str]]()
    for pair, gold in zip(run.pairs, run.golds, strict=True):
        chosen.setdefault(pair.user_id, (pair, gold))
    rows = list(chosen.values())[:n]
    return pd.DataFrame(
        {
            "user": [pair.user_id for pair, _ in rows],
            "query": [pair.query for pair, _ in rows],
            "ŷP": [pair.answer_p for pair, _ in rows],
            "ŷN": [pair.answer_n for pair, _ in rows],
            "the user": [gold for _, gold in rows],
        }
    )


def edits(run: RealRun) -> pd.DataFrame:
    """What every edit is: from how many pairs of which half, at which layers, how it was fitted.

    A guarded fit of which no step was better than no edit on the users held out has strength 0.
    """
    rows = []
    for number, half in enumerate(run.halves, start=1):
        for name, title in EDITS.items():
            edit = half.made[0].get((title, 0))
            if edit is None:
                continue
            fit = half.case.fits.get(name)
            rows.append(
                {
                    "edit": title,
                    "half": number,
                    "pairs": len(half.case.kept) if fit is None else fit.n_pairs,
                    "layers": f"{len(edit.layers)} of {run.study.backbone.n_layers}",
                    "which": ", ".join(map(str, edit.layers)),
                    "steps": None if fit is None else fit.best_step,
                    "first loss": None if fit is None else fit.loss[0],
                    "last loss": None if fit is None else fit.loss[-1],
                    "strength": 0 if fit is not None and fit.best_step == 0 else 1,
                }
            )
    return pd.DataFrame(rows)


def one_query(run: RealRun, user: str) -> pd.DataFrame:
    """What every arm answers to one query of a user."""
    rows = run.arms[(run.arms["user"] == user) & (run.arms["draw"] == 0)].dropna(subset="answer")
    if rows.empty:
        raise UserError(f"There is no user {user!r}; choose among {', '.join(_names(run))}.")
    rows = rows[rows["query"] == rows["query"].iloc[0]]
    return rows[["arm", "source", "gold", "answer", NATS]].reset_index(drop=True)


def _names(run: RealRun) -> Sequence[str]:
    return sorted({user.user.id for user in run.users})


def conclusions(run: RealRun) -> list[str]:
    """What may be said of the method on this model, computed from the tables.

    Where an interval lies, and no word of help or harm: the users are too few for one (R18).
    """
    said, table = [], results(run).set_index("arm")
    gain = f"gain, {NATS}"
    for arm, row in table.iterrows():
        if arm == NO_EDIT:
            continue
        found = Estimate(row[gain], row[f"{gain}_low"], row[f"{gain}_high"], row["n"], row["seeds"])
        words = {"above 0": "above", "below 0": "below", "includes 0": "not told apart from"}
        told = f"{arm}: {words[side(found)]} no edit, {found.value:+.2f} [{found.low:+.2f}, "
        told += f"{found.high:+.2f}] {NATS} over {found.n} users"
        said.append(f"{told}. Not usable: {row['warning']}." if row["warning"] else f"{told}.")
    said += [f"{arm}: not made. {why}" for arm, why in run.refused.items()]
    return said
