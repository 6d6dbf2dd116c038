"""Preferences written into the weights of a real model, beside prompts and edits of activations.

"Towards Effective Model Editing for LLM Personalization" (arXiv 2512.13676) writes a preference as
a fact into one matrix, as a cluster of paraphrases, and asks for it directly, in other words,
implicitly, in a recommendation and after other talk. Here are the tables of what
:mod:`chameleon_lib.studies.s10_desk` did; locality and damage stand beside every gain.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.data.preferences import DIRECT, IMPLICIT, KINDS
from chameleon_lib.editors.measures import BREAKS
from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.figures import FigureOutput
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import Estimate, bootstrap_mean, verdict
from chameleon_lib.kit.tables import estimate_columns
from chameleon_lib.studies.frame import curve, drawn, forest
from chameleon_lib.studies.s10_desk import Editing
from chameleon_lib.studies.s10_rows import (
    F1,
    FT_L,
    FT_M,
    LORA,
    PROMPT,
    ROME_1,
    ROME_3,
    SUBSTRING,
    TITLES,
    WORD,
    ZERO,
)  # fmt: skip

JUDGED = 50  # users that a claim is judged on, as this study was planned


def arms_of(run: Editing) -> list[str]:
    """Rows, in the order of the tables."""
    return list(dict.fromkeys(run.recalls["arm"]))


def scores(run: Editing, arm: str, kind: str, measure: str = SUBSTRING) -> np.ndarray:
    """(seeds, users) scores of a row on one kind of question."""
    rows = run.recalls[(run.recalls["arm"] == arm) & (run.recalls["kind"] == kind)]
    order = list(dict.fromkeys(rows["user"]))
    table = rows.pivot_table(index="seed", columns="user", values=measure)[order]
    return table.to_numpy(dtype=np.float64)


def recall_table(run: Editing) -> pd.DataFrame:
    """Every row: share of users whose target stands in the answer, by kind of question.

    Beside efficacy (direct questions) its whole words and the F1 of its words.
    """
    rows = []
    kinds = list(dict.fromkeys(run.recalls["kind"]))
    for arm in arms_of(run):
        row: dict[str, Any] = {"row": arm}
        for kind in kinds:
            row |= estimate_columns(bootstrap_mean(scores(run, arm, kind)), TITLES[kind])
        row["whole words"] = float(scores(run, arm, DIRECT, WORD).mean())
        row["f1 of words"] = float(scores(run, arm, DIRECT, F1).mean())
        rows.append({**row, "n": row.pop("n"), "seeds": row.pop("seeds")})
    return pd.DataFrame(rows)


def by_kind(run: Editing) -> pd.DataFrame:
    """The recalls of :func:`recall_table`, one row per row and kind of question, for a figure."""
    rows = []
    for arm in arms_of(run):
        for kind in dict.fromkeys(run.recalls["kind"]):
            found = bootstrap_mean(scores(run, arm, kind))
            rows.append({"row": arm, "question": TITLES[kind], **estimate_columns(found)})
    return pd.DataFrame(rows)


def recall_figure(run: Editing, publish: Publisher) -> FigureOutput:
    """Shares by kind of question, the sizes of ROME's cluster among the rows."""
    data = by_kind(run)
    best = data.loc[data["value"].idxmax()]
    return forest(
        publish, data, "10_recall", made_by=recall_figure,
        title=f"{run.backbone.name}: is the preference in the answer?",
        caption=(
            "Share of users whose target stands in the answer, by kind of question, with 95 % "
            "intervals over users"
        ),
        alt=(
            f"Forest plot of {len(data)} shares by row and kind of question; the largest is "
            f"{best['value']:.2f} ({best['row']}, {best['question']})."
        ),
        xlabel="share of users", row="row", method="question", reference=None,
    )  # fmt: skip


def effect_table(run: Editing) -> pd.DataFrame:
    """Locality and damage beside efficacy, of the users whose edits were looked at.

    ``leaks``: share of direct questions of other types whose answer holds the user's target;
    ``others``: share of them whose answer is unchanged to the letter; ``general``: the same of
    general questions; ``perplexity ratio`` of neutral text; ``breaks``: share of edits beyond
    :data:`BREAKS`.
    """
    rows = []
    for arm in dict.fromkeys(run.effects["arm"]):
        part = run.effects[run.effects["arm"] == arm]

        def of(measure: str, part: pd.DataFrame = part) -> np.ndarray:
            table = part.pivot_table(index="seed", columns="user", values=measure)
            return table.to_numpy(dtype=np.float64)

        few = len(set(part["user"]))
        row: dict[str, Any] = {"row": arm}
        row |= estimate_columns(bootstrap_mean(scores(run, arm, DIRECT)[:, :few]), TITLES[DIRECT])
        for measure in ("leaks", "others", "general", "perplexity ratio"):
            row |= estimate_columns(bootstrap_mean(of(measure)), measure)
        row["others' words"] = float(of("others' words").mean())
        row["breaks"] = float((of("perplexity ratio") > BREAKS).mean())
        row["warning"] = "breaks the model" if row["perplexity ratio"] > BREAKS else ""
        rows.append({**row, "n": row.pop("n"), "seeds": row.pop("seeds")})
    return pd.DataFrame(rows)


def effect_figure(table: pd.DataFrame, run: Editing, publish: Publisher) -> FigureOutput:
    """Locality against efficacy: one point per edited row."""
    data = drawn(table, "leaks", "row", TITLES[DIRECT])
    told = "; ".join(
        f"{row['row']} {row['value']:.2f} at {row[TITLES[DIRECT]]:.2f}"
        for _, row in data.iterrows()
    )
    return curve(
        publish, data, "10_locality", made_by=effect_figure,
        title=f"{run.backbone.name}: what an edit says elsewhere",
        caption=(
            "Share of other types' questions that are answered with the user's target, against "
            f"efficacy, with 95 % intervals over {int(data['n'].iloc[0])} users"
        ),
        alt=f"Points of the share of leaking answers over efficacy: {told}.",
        x=TITLES[DIRECT], xlabel="efficacy, share of users (→ better)",
        ylabel="answers of other types with the target", group="row", better="lower",
    )  # fmt: skip


def talk_table(run: Editing) -> pd.DataFrame:
    """Acknowledgement: share of users whose target stands in the answer, by turns of other talk."""
    rows = []
    for (arm, turns), part in run.talks.groupby(["arm", "turns"], sort=False):
        found = bootstrap_mean(part[SUBSTRING].to_numpy(dtype=np.float64))
        rows.append({"row": arm, "turns": int(turns), **estimate_columns(found)})
    return pd.DataFrame(rows)


def talk_figure(table: pd.DataFrame, run: Editing, publish: Publisher) -> FigureOutput:
    """Acknowledgement against turns."""
    return curve(
        publish, table, "10_turns", made_by=talk_figure,
        title=f"{run.backbone.name}: asked after other talk",
        caption=(
            "Share of users whose target stands in the answer to the direct question, with 95 % "
            f"intervals over {int(table['n'].iloc[0])} users"
        ),
        x="turns", xlabel="turns of other talk", ylabel="share of users", group="row",
    )  # fmt: skip


def cost_table(run: Editing) -> pd.DataFrame:
    """What an edit takes and what must be kept of it; means over users.

    ``GFLOP`` is the arithmetic of the first user's edit, counted: it is the same everywhere.
    """
    rows = []
    for arm, part in run.fits.groupby("arm", sort=False):
        steps, size = float(part["steps"].mean()), float(part["bytes"].mean())
        first, last = (part[name].astype(float).mean() for name in ("first loss", "last loss"))
        rows.append(
            {
                "row": arm, "steps": steps, "first loss, nats": first, "last loss, nats": last,
                "GFLOP": float(part["gflop"].dropna().iloc[0]),
                "numbers trained": int(part["trained"].max()),
                "bytes per user": size, "n": part["user"].nunique(),
                "seeds": part["seed"].nunique(),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def speed(run: Editing) -> pd.DataFrame:
    """Seconds per edit and edits per minute on the machine that made them; never compared."""
    timed = run.fits[run.fits["gflop"].isna()]  # the first user's was counted, which takes time
    means = timed.groupby("arm", sort=False)[["seconds", "bytes"]].mean()
    return pd.DataFrame(
        {
            "row": means.index,
            "seconds per edit": means["seconds"].round(2),
            "per minute": (60 / means["seconds"].clip(lower=1e-3)).round(1),
            "bytes per user": means["bytes"].round(),
        }
    ).reset_index(drop=True)


def keep_speed(run: Editing, profile: str) -> str:
    """Writes :func:`speed` to the folder of what differs from run to run; says where it is."""
    path = paths.measured_dir(profile) / "10_speed.csv"
    paths.replace_text(path, speed(run).to_csv(index=False))
    return f"Seconds per edit and edits per minute on this machine: measured/{path.name}"


def examples(run: Editing, user: str) -> pd.DataFrame:
    """What every row answers to the questions of one user."""
    rows = run.recalls[(run.recalls["user"] == user) & (run.recalls["seed"] == 0)]
    if rows.empty:
        known = ", ".join(sorted(set(run.recalls["user"]))[:5])
        raise UserError(f"There is no user {user!r}; choose one such as {known}.")
    table = rows.pivot_table(index="arm", columns="kind", values="answer", aggfunc="first")
    order = [arm for arm in arms_of(run) if arm in table.index]
    kinds = [kind for kind in KINDS if kind in table.columns]
    shown = table.loc[order, kinds].rename(columns=TITLES)
    return shown.rename_axis(None, axis=1).rename_axis("row").reset_index()


# --- claims ---------------------------------------------------------------------------------------


def claims(run: Editing) -> pd.DataFrame:
    """The paper's claims with what came out here, judged by the kit's rule for verdicts.

    The effect is a difference of shares, paired over users; below :data:`JUDGED` users the word is
    that they are too few. The controls of "reproduced" are rows that the claim's own
    row must beat as well.
    """

    def between(one: str, other: str, kind: str) -> Estimate:
        a, b = scores(run, one, kind), scores(run, other, kind)
        size = min(a.shape[1], b.shape[1])
        return bootstrap_mean(a[:, :size], b[:, :size])

    def after_talk(one: str, other: str, turns: int) -> Estimate:
        rows = run.talks[run.talks["turns"] == turns]
        a, b = (rows[rows["arm"] == arm][SUBSTRING].to_numpy(float) for arm in (one, other))
        return bootstrap_mean(a, b)

    turns = min(8, max(run.sizes.turns))
    found: list[tuple[str, str, Estimate, list[Estimate]]] = []
    # A local file may have no clusters, or no implicit questions.
    if not run.recalls.query("arm == @ROME_3 and kind == @IMPLICIT").empty:
        found += [
            ("3 variants beat 1 on implicit questions", "more than 20 points",
             between(ROME_3, ROME_1, IMPLICIT), [between(ROME_3, ZERO, IMPLICIT)]),
            ("3 variants beat zero-shot on implicit questions", "more than 20 points",
             between(ROME_3, ZERO, IMPLICIT), [between(ROME_3, ROME_1, IMPLICIT)]),
        ]  # fmt: skip
    found += [
        (f"an edit outlasts {turns} turns that a prompt does not", "above 90 % against below 20 %",
         after_talk(ROME_1, PROMPT, turns), [after_talk(ROME_1, ZERO, turns)]),
        ("ROME's efficacy is above that of FT-L", "higher",
         between(ROME_1, FT_L, DIRECT), [between(ROME_1, ZERO, DIRECT)]),
        ("ROME's efficacy is above that of FT-M", "higher",
         between(ROME_1, FT_M, DIRECT), [between(ROME_1, ZERO, DIRECT)]),
    ]  # fmt: skip
    return pd.DataFrame(
        [
            {
                "claim": words, "paper": paper, "interval": side(effect),
                **estimate_columns(effect, "difference of shares"),
                "verdict": verdict(effect, controls, min_users=JUDGED),
            }
            for words, paper, effect, controls in found
        ]
    )  # fmt: skip


def _compute_sentence(run: Editing) -> str:
    """ROME's edits beside LoRA's: how many more of them the same arithmetic makes."""
    if not {ROME_1, LORA} <= set(arms_of(run)):
        return "Without LoRA's row, ROME's arithmetic has nothing to be compared with."
    of = run.fits.groupby("arm")["gflop"].first()
    share = {arm: scores(run, arm, DIRECT) for arm in (ROME_1, LORA)}
    size = min(part.shape[1] for part in share.values())
    one, other = (float(share[arm][:, :size].mean()) for arm in (ROME_1, LORA))
    return (
        f"The arithmetic of one LoRA edit ({of[LORA]:.0f} GFLOP) makes {of[LORA] / of[ROME_1]:.2f} "
        f"edits of ROME ({of[ROME_1]:.0f}), where 5 were hoped for, at an efficacy of {one:.2f} "
        f"against LoRA's {other:.2f} over {size} users."
    )


def side(found: Estimate) -> str:
    """On which side of 0 an interval lies."""
    return "above 0" if found.low > 0 else "below 0" if found.high < 0 else "includes 0"


def conclusions(run: Editing) -> list[str]:
    """What came out, in sentences computed from the tables."""
    said = []
    for _, row in claims(run).iterrows():
        name = "difference of shares"
        said.append(
            f"{row['claim']}: {row[name]:+.2f} [{row[f'{name}_low']:+.2f}, "
            f"{row[f'{name}_high']:+.2f}] over {row['n']} users, the paper says {row['paper']}; "
            f"{row['verdict']}."
        )
    said.append(_compute_sentence(run))
    effects = effect_table(run)
    broken = effects[effects["warning"] != ""]["row"]
    leaks = [f"{row['row']} {row['leaks']:.2f}" for _, row in effects.iterrows()]
    said.append(
        "Share of other types' questions that are answered with the user's target: "
        f"{', '.join(leaks)}, over {int(effects['n'].iloc[0])} users."
    )
    said.append(
        f"Edits that break the model (neutral perplexity above {BREAKS} times): "
        f"{', '.join(broken) if len(broken) else 'none'}."
    )
    return said
