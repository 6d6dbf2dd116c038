"""Is it personal, and is it safe? The tables of what :mod:`chameleon_lib.studies.s12_desk` did.

"Personal" is a computed word: a user's own edit must beat the collective edit of all other users
and another user's edit, paired over users. What a table gains stands beside what it costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.core.affine import AffineEdit
from chameleon_lib.core.answers import form_scores
from chameleon_lib.core.edit import AnyEdit, Edit
from chameleon_lib.demo.world import Taste
from chameleon_lib.editors import WeightEdit
from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.figures import FigureOutput
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import (
    MIN_USERS,
    REPRODUCED,
    TOO_FEW_USERS,
    Estimate,
    bootstrap_mean,
    own_claim,
    verdict,
)
from chameleon_lib.kit.tables import estimate_columns, part_columns
from chameleon_lib.serving.export import check_form
from chameleon_lib.studies.frame import curve, drawn, forest
from chameleon_lib.studies.s12_bench import Setting, per_user
from chameleon_lib.studies.s12_desk import (
    ARMS,
    COLLECTIVE,
    DOSES,
    NEAREST,
    NEWCOMER,
    NONE,
    OTHER,
    OWN,
    RANDOM_GROUP,
    SEQUENCE,
    Desk,
    Personal,
    delta_gram,
)
from chameleon_lib.studies.s12_fits import Fitted
from chameleon_lib.studies.s12_people import Question, follows, score_of, scores_of

PERSONAL, NOT_PERSONAL = "personal", "not personal"
GAIN = "gain, nats"
TITLES = {
    "paper": "SVD + CCS (CHAMELEON)", "mean": "mean difference, added (StyleVector)",
    "vector": "signed preference vector (BiPO)", "pair": "fitted pair, MLP output (ours)",
    "pair_block": "fitted pair, block output", "lora": "own LoRA, rank 2 (as OPPU)",
    COLLECTIVE: "collective pair, all other folds",
}  # fmt: skip


def personal(
    over_none: Estimate, over_collective: Estimate, over_other: Estimate,
    min_users: int = MIN_USERS,
) -> str:  # fmt: skip
    """Whether a user's own edit is personal: the kit's rule for verdicts, and nothing else.

    "personal" only where the own edit beats the collective one and, on the same users, another
    user's and none.
    """
    word = verdict(over_collective, [over_other, over_none], min_users=min_users)
    if word == TOO_FEW_USERS:
        return word
    return PERSONAL if word == REPRODUCED else NOT_PERSONAL


# --- arms -----------------------------------------------------------------------------------------


def _asked(run: Personal, setting: Setting) -> tuple[list[Question], list[int], int]:
    """Questions of the arms, the users who have some, and how many users there are."""
    people, able = run.desk.people(setting), run.desk.able(setting)
    inside = set(able)
    return [q for q in people.questions if q.owner in inside], able, len(people.users)


def gains(run: Personal, setting: Setting, arm: str) -> np.ndarray:
    """log p of the user's answers over no edit, nats per question, ``(seeds, users)``."""
    questions, able, n = _asked(run, setting)
    rows = []
    for seed in range(run.seeds):
        found = run.arms[setting, seed]["tensors"]
        change = np.asarray(found[f"nats/{arm}"]) - np.asarray(found[f"nats/{NONE}"])
        rows.append(per_user(questions, change, n)[able])
    return np.stack(rows)


def arm_scores(run: Personal, setting: Setting, arm: str) -> np.ndarray:
    """Accuracy or ROUGE-1 of the arm's answers, ``(seeds, users)``."""
    questions, able, n = _asked(run, setting)
    golds = [question.gold for question in questions]
    return np.stack(
        [
            per_user(questions, scores_of(setting.task, golds,
                     run.arms[setting, seed]["json"]["texts"][arm]), n)[able]
            for seed in range(run.seeds)
        ]
    )  # fmt: skip


def arm_table(run: Personal) -> pd.DataFrame:
    """Every setting and arm: gain over no edit and score, with intervals over users."""
    rows = []
    for setting in run.settings:
        for arm in ARMS:
            row: dict[str, Any] = {"users of": setting.title, "arm": arm}
            row |= estimate_columns(bootstrap_mean(gains(run, setting, arm)), GAIN)
            found = estimate_columns(bootstrap_mean(arm_scores(run, setting, arm)), "score")
            rows.append({**row, "scored by": score_of(setting.task), **found})
    return pd.DataFrame(rows)


def word_of(
    run: Personal, setting: Setting, min_users: int = MIN_USERS, *, by: str = "nats"
) -> str:
    """Whether the own edits of a setting are personal, by ``nats`` or by ``score``.

    The two can differ: an edit that makes an overconfident model less sure gains nats for
    everybody, whatever it answers.
    """
    of = gains if by == "nats" else arm_scores
    none, collective, other = (
        bootstrap_mean(of(run, setting, OWN), of(run, setting, arm))
        for arm in (NONE, COLLECTIVE, OTHER)
    )
    return personal(none, collective, other, min_users)


def reading(run: Personal, setting: Setting) -> str:
    """What own edits of a setting are, by nats and by the score of their answers."""
    word = word_of(run, setting)
    if word == TOO_FEW_USERS:
        return f"{word} for a verdict"
    score = word_of(run, setting, by="score")
    return f"own edits are {word} by nats, {score} by {score_of(setting.task)}"


_PAIRS = ((OWN, NONE), (OWN, COLLECTIVE), (OWN, OTHER), (SEQUENCE, COLLECTIVE), (SEQUENCE, OWN))


def claims(run: Personal) -> pd.DataFrame:
    """Arms against each other, paired over users, and the word that follows for each setting."""
    rows = []
    for setting in run.settings:
        words = reading(run, setting)
        for one, other in _PAIRS:
            nats = bootstrap_mean(gains(run, setting, one), gains(run, setting, other))
            score = bootstrap_mean(arm_scores(run, setting, one), arm_scores(run, setting, other))
            row: dict[str, Any] = {"users of": setting.title, "change": f"{one} minus {other}"}
            row |= estimate_columns(nats, GAIN) | estimate_columns(score, "score change")
            if one == OWN:
                rows.append({**row, "reading": words})
                continue
            held = own_claim(verdict(nats, [bootstrap_mean(gains(run, setting, one))]))
            rows.append({**row, "reading": f"both in one adapter are better: {held}"})
    return pd.DataFrame(rows)


def arm_figure(run: Personal, publish: Publisher) -> FigureOutput:
    """The arms of every setting, side by side."""
    table = arm_table(run)
    data = drawn(table[table["arm"] != NONE], GAIN, "users of", "arm")
    words = "; ".join(f"{setting.title}: {word_of(run, setting)}" for setting in run.settings)
    return forest(
        publish, data, "12_arms", made_by=arm_figure, title="Own, collective and other edits",
        caption=f"Gain over no edit in nats per answer, 95 % intervals over users. {words}",
        xlabel=GAIN, row="arm", panel="users of",
    )  # fmt: skip


# --- forms ----------------------------------------------------------------------------------------


def _records(run: Personal, form: str) -> list[dict[str, Any]]:
    return [record for (name, _), record in run.forms.items() if name == form]


def _kind(run: Personal, kind: str) -> tuple[list[Question], np.ndarray, list[str]]:
    """Questions of a kind, and the model's own nats and answers."""
    people, inside = run.desk.people(run.main), set(run.desk.able(run.main))
    questions = [q for q in (people.questions if kind == "own" else people.neutral[kind])
                 if q.owner in inside]  # fmt: skip
    plain = run.desk.unedited(run.main, kind, questions)
    return questions, np.asarray(plain["nats"]), list(plain["texts"])


def _over_users(run: Personal, questions: Sequence[Question], values: np.ndarray) -> np.ndarray:
    able, n = run.desk.able(run.main), len(run.desk.people(run.main).users)
    means = per_user(questions, values, n)[able]
    return means[~np.isnan(means)]


def carried(desk: Desk, edit: AnyEdit | WeightEdit) -> str:
    """The forms of export that carry an edit, asked of the exports themselves."""
    found = []
    for form in ("peft", "merged", "gguf"):
        try:
            check_form(edit, desk.backbone, form)
        except UserError:
            continue
        found.append(form)
    return ", ".join(found) or "none: the hook alone"


def _one_edit(run: Personal, form: str) -> AnyEdit | WeightEdit:
    """The first user's edit of a form, of all positions, as an export would be given it."""
    desk = run.desk
    if form in ("pair", "paper"):  # of one shape at one site: what carries one carries the other
        fitted = desk.edits(run.arms[run.main, 0], "own")
    elif form == COLLECTIVE:
        fitted = desk.edits(run.arms[run.main, 0], "group")
    else:
        lessons = desk.people(run.main).of(desk.able(run.main)[:1])
        fitted = desk.fit(run.main, form, 0, groups=lessons)
    return fitted.weights(0, desk.backbone) if form == "lora" else _shared(fitted)


def _shared(fitted: Fitted) -> AnyEdit:
    """The edit of the first group for all rows, of all positions."""
    edit = fitted.rows([0], positions="all")
    if isinstance(edit, Edit):
        at = [row for row in range(len(edit.layers))
              if fitted.chosen is None or bool(fitted.chosen[row, 0])]  # fmt: skip
        return Edit(tuple(edit.layers[row] for row in at), edit.theta_p[at, 0],
                    edit.theta_n[at, 0], site=edit.site, positions="all")  # fmt: skip
    return AffineEdit.adding(edit.layers, fitted.tensors["v"][:, 0], positions="all")


def form_table(run: Personal) -> pd.DataFrame:
    """Own edits of every form on the same lessons: gain, score, size, cost, exports."""
    questions, plain, said = _kind(run, "own")
    golds, recipe = [q.gold for q in questions], run.desk.asked.recipe
    before = scores_of(run.main.task, golds, said)
    rows = []
    for form in dict.fromkeys(name for name, _ in run.forms):
        records = _records(run, form)
        gain = np.stack([_over_users(run, questions, np.asarray(r["tensors"]["nats/own"]) - plain)
                         for r in records])  # fmt: skip
        score = np.stack([
            _over_users(run, questions,
                        scores_of(run.main.task, golds, r["json"]["texts"]["own"]) - before)
            for r in records])  # fmt: skip
        row: dict[str, Any] = {"edit": TITLES[form]}
        row |= estimate_columns(bootstrap_mean(gain), GAIN)
        row |= estimate_columns(bootstrap_mean(score), f"{score_of(run.main.task)} change")
        size = records[0]["json"]["parameters"]
        stepped = form not in ("paper", "mean", COLLECTIVE)
        rows.append({
            **row, "parameters": round(size), "bytes": round(4 * size),
            "answers scored with a gradient": 2 * recipe.steps * recipe.batch if stepped else 0,
            "export": carried(run.desk, _one_edit(run, form)),
        })  # fmt: skip
    return pd.DataFrame(rows)


def form_figure(table: pd.DataFrame, run: Personal, publish: Publisher) -> FigureOutput:
    """The forms side by side."""
    return forest(
        publish, drawn(table, GAIN, "edit"), "12_forms", made_by=form_figure,
        title=f"{run.main.title}: own edits of every form on the same lessons",
        caption="Gain over no edit in nats per answer, 95 % intervals over users",
        xlabel=GAIN, row="edit",
    )  # fmt: skip


def keep_seconds(run: Personal, profile: str) -> str:
    """Writes seconds per user of every form to the folder of what differs from run to run."""
    rows = [
        {"edit": TITLES[form], "seconds per user": round(
            float(np.mean([r["json"]["seconds"] / r["json"]["users"]
                           for r in _records(run, form)])), 3)}
        for form in dict.fromkeys(name for name, _ in run.forms) if form != COLLECTIVE
    ]  # fmt: skip
    path = paths.measured_dir(profile) / "12_seconds.csv"
    paths.replace_text(path, pd.DataFrame(rows).to_csv(index=False))
    return f"Seconds per user's fit on this machine, many users at once: measured/{path.name}"


# --- harm -----------------------------------------------------------------------------------------


def harm_table(run: Personal) -> pd.DataFrame:
    """What own edits do to answers on which the user's taste has nothing to say.

    Agreement with the unedited answer; change of the share of right answers, of words and of
    refusals; KL(unedited || edited) of the first tokens; and, where the prompt states a wrong
    opinion, the change of the share of answers that follow it.
    """
    rows = []
    for kind in run.desk.people(run.main).neutral:
        questions, _, said = _kind(run, kind)
        old = form_scores(said)
        led = [follows(q, text) for q, text in zip(questions, said, strict=True)]
        for form in dict.fromkeys(name for name, _ in run.forms):
            parts: dict[str, list[np.ndarray]] = {}
            for record in _records(run, form):
                texts = record["json"]["texts"][kind]
                new = form_scores(texts)
                golds = [q.gold for q in questions]
                right, was = (_right(golds, some) for some in (texts, said))
                now = [follows(q, text) for q, text in zip(questions, texts, strict=True)]
                found: dict[str, Any] = {
                    "agreement": np.array(texts) == np.array(said),
                    "right change": right - was,
                    "words change": new["words"] - old["words"],
                    "refusals change": new["refusal"] - old["refusal"],
                    "KL, nats": record["tensors"][f"kl/{kind}"],
                    "follows it, change": np.array(now, float) - np.array(led, float),
                }
                for name, values in found.items():
                    over = _over_users(run, questions, np.asarray(values, dtype=np.float64))
                    parts.setdefault(name, []).append(over)
            row: dict[str, Any] = {"questions": kind, "edit": TITLES[form]}
            row |= estimate_columns(bootstrap_mean(np.stack(parts.pop("agreement"))), "agreement")
            stated = bool(questions[0].wrong)
            for name, values in parts.items():
                empty = not len(values[0]) or (name.startswith("follows") and not stated)
                row |= part_columns(None if empty else bootstrap_mean(np.stack(values)), name)
            rows.append(row)
    return pd.DataFrame(rows)


def _right(golds: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """Whether an answer begins with the right one."""
    return np.array([text.strip().casefold().startswith(gold.casefold())
                     for text, gold in zip(texts, golds, strict=True)], float)  # fmt: skip


def dose_table(run: Personal) -> pd.DataFrame:
    """The own pair over strength: gain where there is a taste, agreement and KL where none is."""
    rows = []
    for at, dose in enumerate(DOSES):
        row: dict[str, Any] = {"strength": dose}
        for name in run.doses[0][at]:
            if name == "dose" or name in ("own/agreement", "own/kl"):
                continue
            kind, _, measure = name.partition("/")
            if kind != "own" and measure == "gain":
                continue
            values = np.array([run.doses[seed][at][name] for seed in range(run.seeds)])
            there = ~np.isnan(values).any(axis=0)
            title = {"own/gain": GAIN, "own/score": score_of(run.main.task)}.get(
                name, f"{measure}, {kind}")  # fmt: skip
            if name == "own/gain":
                row |= estimate_columns(bootstrap_mean(values[:, there]), title)
            else:
                row |= part_columns(bootstrap_mean(values[:, there]), title)
        rows.append(row)
    return pd.DataFrame(rows)


def dose_figure(table: pd.DataFrame, run: Personal, publish: Publisher) -> FigureOutput:
    """Accuracy where there is a taste and agreement where there is none, over strength."""
    score = score_of(run.main.task)
    names = {score: f"{score}, own questions"}
    names |= {column: column for column in table if str(column).startswith("agreement,")
              and not str(column).endswith(("_low", "_high", " n"))}  # fmt: skip
    data = pd.concat(
        [drawn(table, column, "strength").assign(measure=title) for column, title in names.items()]
    )
    return curve(
        publish, data, "12_dose", made_by=dose_figure,
        title=f"{run.main.title}: what a stronger own edit gains and breaks",
        caption=(
            f"{score} on the user's own questions, and agreement with the unedited answer on "
            "others, over the strength of the own pair; 95 % intervals over users"
        ),
        x="strength", xlabel="strength of the own edit", ylabel="share", group="measure",
        better=None,
    )  # fmt: skip


# --- ranks ----------------------------------------------------------------------------------------


def features(tastes: Sequence[Taste]) -> np.ndarray:
    """What is planted in every user, one column per value that a habit takes, centred."""
    columns = []
    for name in ("tag", "shift", "opener", "closer", "slang", "short"):
        values = [getattr(taste, name) for taste in tastes]
        columns += [[float(value == one) for value in values] for one in sorted(set(values))]
    table = np.array(columns).T
    centred: np.ndarray = table - table.mean(axis=0)
    return centred


def energy_rank(gram: np.ndarray, share: float) -> int:
    """Fewest singular directions of the stacked, centred changes with this share of energy."""
    n = len(gram)
    centre = np.eye(n) - 1 / n
    values = np.clip(np.linalg.eigvalsh(centre @ gram @ centre)[::-1], 0, None)
    found = np.cumsum(values) / values.sum()
    return int(np.searchsorted(found, share - 1e-12) + 1)


def rank_table(run: Personal) -> pd.DataFrame:
    """How many dimensions own edits differ in, beside those that are planted."""
    rows = []
    for setting in run.settings:
        people, able = run.desk.people(setting), run.desk.able(setting)
        grams = [delta_gram(run.desk.edits(run.arms[setting, seed], "own"))
                 for seed in range(run.seeds)]  # fmt: skip
        row: dict[str, Any] = {"users of": setting.title}
        for share in (0.8, 0.9):
            row[f"rank for {share:.0%}"] = float(np.mean([energy_rank(g, share) for g in grams]))
        if people.tastes:
            planted = features([people.tastes[owner] for owner in able])
            kept = np.linalg.matrix_rank(planted)
            row["planted dimensions"] = int(kept)
            row["energy explained by taste"] = float(np.mean([explained(g, planted)
                                                              for g in grams]))  # fmt: skip
            row["expected by chance"] = kept / (len(able) - 1)
        rows.append({**row, "n": len(able), "seeds": run.seeds})
    return pd.DataFrame(rows)


def explained(gram: np.ndarray, planted: np.ndarray) -> float:
    """Share of the energy of the centred changes that is linear in what is planted."""
    n = len(gram)
    centre = np.eye(n) - 1 / n
    inner = centre @ gram @ centre
    basis = planted @ np.linalg.pinv(planted)
    return float(np.trace(basis @ inner @ basis) / np.trace(inner))


# --- newcomers ------------------------------------------------------------------------------------


def _newcomer(run: Personal, arm: str) -> np.ndarray:
    people, rows = run.desk.people(run.main), []
    for seed in range(run.seeds):
        found = run.newcomers[seed]["tensors"]
        change = np.asarray(found[f"nats/{arm}"]) - np.asarray(found[f"nats/{NONE}"])
        rows.append(per_user(people.questions, change, len(people.users)))
    return np.stack(rows)


def newcomer_table(run: Personal) -> pd.DataFrame:
    """Users without a history: gain under the edit of the group, and of one of its parts.

    Raises:
        UserError: Files have no other users to make groups of.
    """
    if not run.newcomers:
        raise UserError("Newcomers are asked in the embedded world; leave data_dir empty.")
    people, rows = run.desk.people(run.main), []
    golds = [q.gold for q in people.questions]
    distance = np.stack([per_user(people.questions, run.newcomers[seed]["tensors"]["distance"],
                                  len(people.users)) for seed in range(run.seeds)])  # fmt: skip
    for arm in NEWCOMER:
        own = _newcomer(run, arm)
        score = np.stack([
            per_user(people.questions, scores_of(run.main.task, golds,
                     run.newcomers[seed]["json"]["texts"][arm]), len(people.users))
            for seed in range(run.seeds)])  # fmt: skip
        row: dict[str, Any] = {"a user without history under": arm}
        row |= estimate_columns(bootstrap_mean(own), GAIN)
        row |= estimate_columns(bootstrap_mean(own, _newcomer(run, COLLECTIVE)), "minus the group")
        row |= estimate_columns(bootstrap_mean(score), score_of(run.main.task))
        near = arm == NEAREST
        row |= part_columns(bootstrap_mean(distance) if near else None, "cosine distance")
        rows.append(row)
    return pd.DataFrame(rows)


def digests(run: Personal) -> dict[str, str]:
    """Hash of the users of every setting."""
    return {setting.title: digest([run.desk.people(setting).users]) for setting in run.settings}


def conclusions(run: Personal) -> list[str]:
    """What came out, in sentences computed from the tables."""
    said = []
    for setting in run.settings:
        own = gains(run, setting, OWN)
        names = {COLLECTIVE: "the collective edit", OTHER: "another's"}
        parts = [
            f"{bootstrap_mean(own, gains(run, setting, arm))} nats over {name}"
            for arm, name in names.items()
        ]
        share = float(gains(run, setting, COLLECTIVE).mean() / own.mean())
        said.append(
            f"{setting.title}, {own.shape[1]} users, {run.seeds} seeds: {reading(run, setting)} "
            f"({' and '.join(parts)}); the collective edit alone has {share:.0%} of the own "
            "edit's gain."
        )
    if run.newcomers:
        near = bootstrap_mean(_newcomer(run, NEAREST), _newcomer(run, COLLECTIVE))
        luck = bootstrap_mean(_newcomer(run, NEAREST), _newcomer(run, RANDOM_GROUP))
        said.append(
            f"Without a history, the nearest group's edit is {near} nats from that of the whole "
            f"group, and {luck} from a random part's."
        )
    return said
