"""What makes a user different, as soft prompts and as words: DEP and DPL beside our edits.

"Latent Inter-User Difference Modeling for LLM Personalization" (EMNLP 2025) and "Measuring What
Makes You Unique" (Findings of ACL 2025) compare a user's reviews with those that others wrote about
the same items. Here are the tables of what :mod:`chameleon_lib.studies.s11_desk` did.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.data.metrics import evaluate
from chameleon_lib.difference.world import STYLE, BagEmbedder, World
from chameleon_lib.errors import UserError
from chameleon_lib.kit.figures import FigureOutput, groups_scatter
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import Estimate, bootstrap_mean, own_claim, verdict
from chameleon_lib.kit.tables import estimate_columns
from chameleon_lib.studies.frame import curve, drawn, forest
from chameleon_lib.studies.s10_personalization_editing import side
from chameleon_lib.studies.s11_desk import (
    BOTH,
    DIFF,
    DPL,
    FITTED,
    HIS,
    LEARNED,
    NATS,
    NONE,
    ORACLE,
    PAPER,
    RAW,
    SHUFFLED,
    SWAPPED,
    Differences,
)

TITLES = {
    "style hit": "style hit rate", "wrong style": "wrong-style rate", "rating": "rating accuracy",
    "accuracy": "accuracy", "rouge1": "ROUGE-1", "meteor": "METEOR", "bleu": "BLEU",
    NATS: NATS,
}  # fmt: skip

NOT_PLANTED = "Local files have no planted style; leave data_dir empty for the world."


def arms_of(run: Differences) -> list[str]:
    """Rows, in the order of the tables."""
    return list(dict.fromkeys(run.written["arm"]))


def main_measure(run: Differences) -> str:
    """What claims are judged by: the papers' ROUGE-1, or the accuracy of a tag."""
    return "rouge1" if "rouge1" in run.written else "accuracy"


def scores(run: Differences, arm: str, measure: str) -> np.ndarray:
    """(seeds, users) scores of a row."""
    rows = run.written[run.written["arm"] == arm]
    order = list(dict.fromkeys(run.written["user"]))
    table = rows.pivot_table(index="seed", columns="user", values=measure)[order]
    return table.to_numpy(dtype=np.float64)


def row_table(run: Differences) -> pd.DataFrame:
    """Every row: its scores with intervals over users; of tags the macro-F1 as well."""
    rows = []
    for arm in arms_of(run):
        row: dict[str, Any] = {"row": arm}
        for measure, title in TITLES.items():
            if measure in run.written:
                row |= estimate_columns(bootstrap_mean(scores(run, arm, measure)), title)
        if "accuracy" in run.written:
            part = run.written[run.written["arm"] == arm]
            each = [evaluate("LaMP_2", list(own["gold"]), list(own["answer"]))["f1"]
                    for _, own in part.groupby("seed")]  # fmt: skip
            row |= {"macro F1": float(np.mean(each)), "peers per movie": run.peers}
        rows.append({**row, "n": row.pop("n"), "seeds": row.pop("seeds")})
    return pd.DataFrame(rows)


def row_figure(table: pd.DataFrame, run: Differences, publish: Publisher) -> FigureOutput:
    """The rows side by side: how often a review has the user's style, or the first score."""
    title = next(title for measure, title in TITLES.items() if measure in run.written)
    data = drawn(table, title, "row")
    best = data.loc[data["value"].idxmax()]
    return forest(
        publish, data, "11_rows", made_by=row_figure,
        title=f"{run.material.title}: {title}",
        caption=f"{title} of the written reviews, with 95 % intervals over users",
        alt=(
            f"Forest plot of the {title} of {len(data)} rows; the largest is {best['value']:.2f} "
            f"({best['row']})."
        ),
        xlabel=title, row="row", reference=None,
    )  # fmt: skip


# --- vectors --------------------------------------------------------------------------------------


def alike_table(run: Differences) -> pd.DataFrame:
    """Cosine of two users' mean differences, by how many planted style words they share.

    Raises:
        UserError: Nothing is planted in local files.
    """
    world = _planted(run)
    units = {user: row / np.linalg.norm(row) for user, row in run.vectors.items()}
    found: dict[int, list[float]] = {}
    for one, other in combinations(units, 2):
        shared = len(set(world.tastes[one].style) & set(world.tastes[other].style))
        found.setdefault(shared, []).append(float(units[one] @ units[other]))
    return pd.DataFrame(
        [
            {
                "shared style words": shared, "mean cosine": np.mean(values), "pairs": len(values),
                "n": len(units), "seeds": 1,
            }
            for shared, values in sorted(found.items())
        ]
    )  # fmt: skip


def in_two_words(run: Differences) -> tuple[pd.DataFrame, tuple[str, str]]:
    """Users' mean differences along the embeddings of the two most frequent style words."""
    world = _planted(run)
    held = Counter(word for user in run.vectors for word in world.tastes[user].style)
    words = sorted(STYLE, key=lambda word: (-held[word], word))[:2]
    axes = BagEmbedder(len(next(iter(run.vectors.values())))).encode(words)
    rows = []
    for user, vector in run.vectors.items():
        own = [word for word in words if word in world.tastes[user].style]
        x, y = (float(axis @ vector) for axis in axes)
        rows.append({"user": user, "x": x, "y": y, "planted": " and ".join(own) or "neither"})
    return pd.DataFrame(rows), (words[0], words[1])


def vector_figure(run: Differences, publish: Publisher) -> FigureOutput:
    """Difference vectors in two dimensions, by planted style."""
    data, (one, other) = in_two_words(run)
    means = data.groupby("planted")[["x", "y"]].mean()
    data = data.sort_values("planted", key=lambda s: s.map({"neither": 0}).fillna(1), kind="stable")
    names = {"x": f"mean difference along “{one}”", "y": f"mean difference along “{other}”"}
    image = groups_scatter(
        data, title="Difference vectors and planted style", profile=publish.profile,
        xlabel=names["x"], ylabel=names["y"], group="planted",
    )  # fmt: skip
    told = "; ".join(f"{name} {x:+.2f}, {y:+.2f}" for name, (x, y) in means.iterrows())
    return publish.figure(
        image, "11_vectors", data=data, made_by=vector_figure,
        caption=(
            f"Mean difference of every user's eight reviews to their peers', along the embeddings "
            f"of the two most frequent style words ({publish.profile} profile)."
        ),
        alt=f"Scatter plot of {len(data)} users by the style words they have; means: {told}.",
    )  # fmt: skip


def _planted(run: Differences) -> World:
    if run.material.world is None:
        raise UserError(NOT_PLANTED)
    return run.material.world


# --- training -------------------------------------------------------------------------------------


def training_table(run: Differences) -> pd.DataFrame:
    """How the trained rows went, and how their autoencoders stand: means over seeds."""
    means = run.trained.drop(columns="seed").groupby("arm", sort=False).mean()
    seeds = run.trained.groupby("arm", sort=False)["seed"].nunique()
    table = means.assign(n=len(run.material.samples.test), seeds=seeds).reset_index()
    return table.rename(columns={"arm": "row"})


def code_figure(run: Differences, publish: Publisher) -> FigureOutput:
    """Mean code of every unit of the autoencoders, largest first: how sparse they are."""
    grouped = run.codes.groupby(["arm", "unit"], sort=False)["code"]
    data = grouped.agg(value="mean", ci_low="min", ci_high="max").reset_index()
    data = data.rename(columns={"arm": "row"})
    data = data.assign(n=len(run.material.samples.test), seeds=run.codes["seed"].nunique())
    dead = run.trained.dropna(subset=["dead units"]).groupby("arm", sort=False)["dead units"].mean()
    told = "; ".join(f"{row} {share:.2f}" for row, share in dead.items())
    return curve(
        publish, data, "11_codes", made_by=code_figure,
        title="Mean code of every unit of the autoencoder",
        caption=(
            "Mean code over the vectors of the test, units from the largest to the smallest, with "
            f"the range over seeds; sparsity asks for 0.05. Share of dead units: {told}"
        ),
        alt=f"Falling lines of the mean code over units; shares of dead units: {told}.",
        x="unit", xlabel="unit, by its mean code", ylabel="mean code", group="row",
        better=None,
    )  # fmt: skip


def examples(run: Differences, user: str) -> pd.DataFrame:
    """What every row writes for one user, beside the real review."""
    rows = run.written[(run.written["user"] == user) & (run.written["seed"] == 0)]
    if rows.empty:
        known = ", ".join(sorted(set(run.written["user"]))[:5])
        raise UserError(f"There is no user {user!r}; choose one such as {known}.")
    told = (run.material.told or {}).get(user, "")
    first = [{"row": "the user's own", "review": rows["gold"].iloc[0]}]
    if told:
        first.append({"row": "planted", "review": told})
    shown = [{"row": arm, "review": text} for arm, text in zip(rows["arm"], rows["answer"],
                                                              strict=True)]  # fmt: skip
    return pd.DataFrame([*first, *shown])


# --- claims ---------------------------------------------------------------------------------------

_PAPER = "a gain (ablation, values not at hand)"
_OWN = "our own claim"
_CLAIMS: tuple[tuple[str, str, str, str, tuple[str, ...]], ...] = (
    ("history alone beats none", _PAPER, HIS, NONE, (LEARNED,)),
    ("the difference alone beats none", _PAPER, DIFF, NONE, (LEARNED, SWAPPED)),
    ("both beat history alone", _PAPER, BOTH, HIS, (NONE,)),
    ("both beat the difference alone", _PAPER, BOTH, DIFF, (NONE,)),
    ("DEP beats DPL", "+.055 ROUGE-1 (Books, 7B)", BOTH, DPL, (LEARNED,)),
    ("the difference must be the right user's", _OWN, DIFF, SWAPPED, (NONE,)),
    ("the peers must be those of the item", _OWN, DIFF, SHUFFLED, (NONE,)),
    ("the autoencoder helps", _OWN, BOTH, RAW, (NONE,)),
    ("DEP beats CHAMELEON's edit", _OWN, BOTH, PAPER, (NONE,)),
    ("DEP beats our fitted edit", _OWN, BOTH, FITTED, (NONE,)),
)  # fmt: skip


def between(run: Differences, one: str, other: str, measure: str) -> Estimate:
    """One row minus another, paired over users."""
    return bootstrap_mean(scores(run, one, measure), scores(run, other, measure))


def claims(run: Differences) -> pd.DataFrame:
    """The papers' claims with what came out here, judged by the kit's rule for verdicts.

    The controls of "reproduced" are rows that the claim's own row must beat as well. The change of
    nats per token stands beside it, unjudged.
    """
    measure, rows = main_measure(run), []
    for words, paper, one, other, controls in _CLAIMS:
        effect = between(run, one, other, measure)
        word = verdict(effect, [between(run, one, control, measure) for control in controls])
        nats = between(run, one, other, NATS)
        row: dict[str, Any] = {"claim": words, "paper": paper, "interval": side(effect)}
        row |= estimate_columns(effect, f"{TITLES[measure]} change")
        word = own_claim(word) if paper == _OWN else word
        rows.append({**row, "nats change": nats.value, "verdict": word})
    return pd.DataFrame(rows)


def controls(run: Differences) -> pd.DataFrame:
    """Whether the two controls are near or below none, by every measure that a user has."""
    rows = []
    for control in (SHUFFLED, SWAPPED):
        for measure in ("style hit", main_measure(run)):
            if measure not in run.written:
                continue
            found = between(run, control, NONE, measure)
            passed = found.low <= 0
            rows.append(
                {
                    "control": control, "measure": TITLES[measure],
                    **estimate_columns(found, "minus none"),
                    "reading": "near or below none" if passed else "above none: it fails",
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def conclusions(run: Differences) -> list[str]:
    """What came out, in sentences computed from the tables."""
    measure = TITLES[main_measure(run)]
    name, said = f"{measure} change", []
    for _, row in claims(run).iterrows():
        said.append(
            f"{row['claim']}: {measure} {row[name]:+.3f} [{row[f'{name}_low']:+.3f}, "
            f"{row[f'{name}_high']:+.3f}] over {row['n']} users; "
            f"{row['paper'] if row['paper'] == _OWN else 'the paper says ' + row['paper']}: "
            f"{row['verdict']}."
        )
    for _, row in controls(run).iterrows():
        said.append(
            f"Control, {row['control']}: {row['measure']} minus none {row['minus none']:+.3f} "
            f"[{row['minus none_low']:+.3f}, {row['minus none_high']:+.3f}]; {row['reading']}."
        )
    if run.material.told is not None:
        ceiling = between(run, ORACLE, BOTH, main_measure(run))
        said.append(
            f"Planted style in words is {ceiling.value:+.3f} [{ceiling.low:+.3f}, "
            f"{ceiling.high:+.3f}] {measure} from history and difference: the room that is left."
        )
    return said
