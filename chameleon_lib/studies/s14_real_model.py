"""A real instruction-tuned model through the whole method, on invented users in plain English.

The users (`real_posts.csv`, `real_reviews.csv`) were invented for this kit: sixteen habits of
writing posts and of giving stars. They are halved; the pairs of one half fit an edit (sections 3.1
to 3.3) that the other half is scored under, and the other way round, so every user is scored under
an edit that no text of the user's has fitted. The primary measure is the log-probability per token
of what the user wrote; generation and, for stars, scoring of the labels stand beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from chameleon_lib.core.answers import form_scores, is_echo
from chameleon_lib.core.chameleon import Case
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import (
    PreferencePair,
    PreparedUser,
    decode_settings,
    keep_different,
    max_new_tokens,
    prompt_texts,
)
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import User, get_task
from chameleon_lib.data.importing import ImportOptions, read_table
from chameleon_lib.data.metrics import per_sample_scores
from chameleon_lib.errors import UserError
from chameleon_lib.kit.figures import FigureOutput
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.pool import warm
from chameleon_lib.kit.profiles import RunProfile, model_title
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import Estimate, bootstrap_mean
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.kit.tables import estimate_columns
from chameleon_lib.studies.arms import edit_key, with_gold
from chameleon_lib.studies.data import without_gold
from chameleon_lib.studies.forms import form_of
from chameleon_lib.studies.frame import drawn, forest
from chameleon_lib.studies.study import Study

POSTS, REVIEWS = "LaMP_7", "LaMP_3"
TABLES = {
    POSTS: (Path(__file__).with_name("real_posts.csv"), 2),
    REVIEWS: (Path(__file__).with_name("real_reviews.csv"), 1),
}  # task → table, and how many of a user's latest rows are asked
NO_EDIT = "no edit"
NATS = "nats per token"
RANDOM_DRAWS = 2
MODEL = "smollm2"  # of `kit.wheels`
Arm = tuple[str, int]  # title, and which of several draws
# Edits of a case (names of the registry), and what the tables call them. Where both answers are one
# digit the paper's directions read little but the digit (A4), and self-made pairs teach the digit.
EDITS = {
    "paper": "paper's edit",
    "fitted": "fitted on self-made pairs",
    "fitted_history": "fitted on histories",
    "fitted_format": "fitted on other users' histories (control)",
    "fitted_gold": "fitted on gold pairs (positive control)",
}
# What the default run makes of them, for a fit takes minutes. The control of format is left to
# faster machines: the other half's edit and another user's history stand in its place.
MADE: dict[str, tuple[str, ...]] = {
    POSTS: ("paper", "fitted", "fitted_history", "fitted_gold"),
    REVIEWS: ("fitted_gold",),
}
# Edits that are also tried on the half that made them (the gold one would be a leak), and under
# another user's history.
SEEN, CROSSED = ("fitted_history",), ("fitted_history",)
PROMPTS = {
    "unseen": "no history in the prompt",
    "insight": "insight in the prompt",
}
WRONG = "another user's history in the prompt"
RANDOM = "random directions"
OWN_GROUP = "{edit}, of the user's own half"


def settings_of(profile: RunProfile, **changes: Any) -> EditSettings:
    """The paper's settings, at a length that a processor reads in minutes.

    Of a user's few items four are shown; insights and answers are short, as the texts are. Fits are
    guarded, and take a fifth of the steps in an eighth of the batches.
    """
    return EditSettings().with_(
        **{
            "selection_k": 4,
            "decode_insight_tokens": 32,
            "decode_max_new_tokens": 32,
            "pairs_on_too_few": "warn",
            "fit_steps": 8,
            "fit_batch": 4,
            "model_dtype": profile.dtype,
            **changes,
        }
    )


def invented_users(task: str) -> list[User]:
    """The invented users of one task, every row kept.

    Raises:
        UserError: Their table has a row that is no item of a user.
    """
    path, queries = TABLES[task]
    report = read_table(path, task, ImportOptions(queries=queries))
    if report.curated.dropped:
        raise UserError(f"{path.name}: {report.curated.dropped[0]}; mend the table.")
    return report.curated.users


def users_digest(task: str) -> str:
    """SHA-256 of the invented users of a task."""
    return digest(invented_users(task))


@dataclass(frozen=True, eq=False)
class Half:
    """Half of the users, with the pairs they make and the edits of these.

    Attributes:
        study: Backbone, task and settings.
        users: Prepared, without gold answers.
        golds: Gold answers of their queries, for scoring and the positive control.
        people: The same users with gold answers.
        pairs: Unfiltered.
    """

    study: Study
    users: list[PreparedUser]
    people: list[User]
    pairs: list[PreferencePair]

    @property
    def golds(self) -> list[str]:
        """Of every query, in order."""
        return [str(query.gold) for user in self.people for query in user.queries]

    @property
    def owners(self) -> list[str]:
        """The user of every query."""
        return [user.id for user in self.people for _ in user.queries]

    @cached_property
    def case(self) -> Case:
        """The pairs, and every edit that can be made from them."""
        return self.study.case(self.pairs, 0, with_gold(self.users, self.people))

    @cached_property
    def made(self) -> tuple[dict[Arm, Edit], dict[Arm, str]]:
        """The edits by arm (title, draw), and of every other arm one sentence why it has none."""
        made, refused = dict[Arm, Edit](), dict[Arm, str]()
        kinds, wanted = MADE[self.study.task], dict[Arm, tuple[str, int | None]]()
        wanted |= {(EDITS[name], 0): (name, None) for name in kinds}
        if "paper" in kinds:  # random directions sit at its layers
            wanted |= {(RANDOM, draw): ("random", 1000 + draw) for draw in range(RANDOM_DRAWS)}
        for arm, (name, seed) in wanted.items():
            try:
                made[arm] = self.case.edit(name, seed)
            except UserError as error:
                refused[arm] = str(error)
        return made, refused

    def prompts(self, kind: str) -> list[str]:
        """The prompts of all queries; :data:`WRONG` shows each user the next one's history."""
        users = self.users
        if kind == WRONG:
            shown = [*users[1:], users[0]]
            users = [replace(u, items=v.items) for u, v in zip(users, shown, strict=True)]
            kind = "instruct"
        return prompt_texts(self.study.task, users, kind, self.study.settings)


@dataclass(frozen=True, eq=False)
class RealRun:
    """Both halves of one task, and what all arms said.

    Attributes:
        study: Backbone, task and settings.
        halves: Of the users.
        arms: One row per arm, draw and query: ``arm``, ``draw``, ``user``, ``query``, ``source``,
            ``gold``, :data:`NATS`, for stars the error of the likeliest label; and where answers
            are written, ``answer``, its scores and those of its form.
        refused: Arm → why it has no rows.
    """

    study: Study
    halves: tuple[Half, Half]
    arms: pd.DataFrame
    refused: dict[str, str]

    @property
    def users(self) -> list[PreparedUser]:
        """All, first half first."""
        return [user for half in self.halves for user in half.users]

    @property
    def pairs(self) -> list[PreferencePair]:
        """All, unfiltered."""
        return [pair for half in self.halves for pair in half.pairs]

    @property
    def golds(self) -> list[str]:
        """Of every pair's query."""
        return [gold for half in self.halves for gold in half.golds]


def run(
    profile: RunProfile,
    backbone_id: str,
    task: str,
    *,
    users: int = 0,
    store: ArtifactStore | None = None,
    **changes: Any,
) -> RealRun:
    """Everything of one task; finished work is kept, so a second call reads it.

    Args:
        profile: Run profile.
        backbone_id: A folder or a hub name.
        task: One of :data:`TABLES`.
        users: Only so many of the invented users; all if 0.
        store: Artifact store; the default one if None.
        **changes: Settings that differ from :func:`settings_of`.

    Raises:
        UserError: Fewer than two users, or one who does not fit the context.
    """
    study = Study(profile, backbone_id, task, settings_of(profile, **changes), store)
    people = invented_users(task)[: users or None]
    if len(people) < 2:
        raise UserError(f"users is {users}; two halves need 2 or more.")
    if profile.workers > 1:
        asked = (profile, backbone_id, task, study.settings, study.store.root, people)
        each = [(*asked, 0), (*asked, 1)]
        title = f"{model_title(backbone_id)} {task}"
        phases = [(f"{title} edits", _make_edits, each), (f"{title} answers", _ask_half, each)]
        warm(phases, workers=profile.workers, threads=profile.threads, preload=_CLASSES)
    halves = (_half(study, people, 0), _half(study, people, 1))
    refused = {arm: why for half in halves for arm, why in half.made[1].items()}
    parts = [
        _answered(half, _arms(half, other, refused)) for half, other in (halves, halves[::-1])
    ]
    told = {title: why for (title, _), why in refused.items()}
    return RealRun(study, halves, pd.concat(parts, ignore_index=True), told)


_CLASSES = ("transformers.models.llama.modeling_llama",)  # of :data:`MODEL`
Asked = tuple[RunProfile, str, str, EditSettings, Path, list[User]]


def _opened(*asked: *Asked) -> tuple[Study, list[User]]:
    """In a process of its own; its work stays in the store."""
    profile, backbone_id, task, settings, root, people = asked
    return Study(profile, backbone_id, task, settings, ArtifactStore(root)), people


def _make_edits(*asked: Any) -> None:
    _ = _half(*_opened(*asked[:-1]), asked[-1]).made


def _ask_half(*asked: Any) -> None:
    study, people = _opened(*asked[:-1])
    half, other = (_half(study, people, number) for number in (asked[-1], 1 - asked[-1]))
    refused = {**half.made[1], **other.made[1]}
    _answered(half, _arms(half, other, refused))


def _arms(half: Half, other: Half, refused: Collection[Arm]) -> dict[Arm, tuple[str, Edit | None]]:
    """Arm → prompt and edit for the users of one half; without those that either half lacks."""
    arms: dict[Arm, tuple[str, Edit | None]] = {
        (NO_EDIT, 0): ("instruct", None),
        **{(title, 0): (kind, None) for kind, title in PROMPTS.items()},
        (WRONG, 0): (WRONG, None),
    }
    theirs = {arm: edit for arm, edit in other.made[0].items() if arm not in refused}
    arms |= {arm: ("instruct", edit) for arm, edit in theirs.items()}
    for title in (EDITS[name] for name in SEEN):
        if (title, 0) in theirs:
            arms[OWN_GROUP.format(edit=title), 0] = ("instruct", half.made[0][title, 0])
    for title in (EDITS[name] for name in CROSSED):
        if (title, 0) in theirs:
            arms[f"{title}; {WRONG}", 0] = (WRONG, theirs[title, 0])
    return arms


def _half(study: Study, users: list[User], number: int) -> Half:
    people = users[number::2]
    prepared = study.prepare(without_gold(people))
    if prepared.left_out:
        name, why = next(iter(prepared.left_out.items()))
        raise UserError(f"User {name} cannot be asked with {study.backbone_id}: {why}")
    return Half(study, prepared.users, people, study.pairs(prepared.users))


def _answered(half: Half, arms: Mapping[Arm, tuple[str, Edit | None]]) -> pd.DataFrame:
    """The rows of all arms on the queries of one half."""
    study, settings, golds = half.study, half.study.settings, half.golds
    labels, read = get_task(study.task).labels, dict[str, Any]()
    texts = {kind: half.prompts(kind) for kind, _ in arms.values()}

    groups = [at for at, user in enumerate(half.people) for _ in user.queries]

    def ask(written: bool, kind: str, edit: Edit | None) -> dict[str, Any]:
        backbone = study.backbone
        if kind not in read:
            read[kind] = backbone.prepare(texts[kind], groups=groups)
        with torch.no_grad():
            answers: list[str] = []
            if written:
                answers = backbone.generate_prepared(
                    read[kind],
                    max_new_tokens=max_new_tokens(study.task, settings),
                    edit=edit,
                    decode=decode_settings(settings),
                )
            tensors = {"nats": backbone.score(read[kind], golds, edit=edit, reduce="mean")}
            if labels:
                scored = backbone.score_many(read[kind], [labels] * len(golds), edit=edit)
                tensors["labels"] = torch.stack(list(scored))
        return {"json": answers, "tensors": tensors}

    records = study.store.map(
        "real_answers",
        [(is_written(arm), *asked) for arm, asked in arms.items()],
        lambda batch: [ask(*one) for one in batch],
        inputs={
            **study.inputs("decode_", "model_"),
            "max_new_tokens": max_new_tokens(study.task, settings),
            "golds": golds,
        },
        key_of=lambda one: [one[0], digest(texts[one[1]]), edit_key(one[2])],
        batch_size=1,
        label=f"{study.backbone.name} {study.task} answers",
        modules=("chameleon_lib.core.edit", "chameleon_lib.backbones"),
    )
    asked = [query.id for user in half.people for query in user.queries]
    sources = [query.text for user in half.people for query in user.queries]
    parts = []
    for (arm, draw), record in zip(arms, records, strict=True):
        part = {
            "arm": arm,
            "draw": draw,
            "user": half.owners,
            "query": asked,
            "source": sources,
            "gold": golds,
            "answer": record["json"] or None,
            NATS: np.asarray(record["tensors"]["nats"], dtype=np.float64),
        }
        if record["json"]:
            part |= _scores(study.task, golds, sources, record["json"])
        if labels:
            likely = np.asarray(record["tensors"]["labels"]).argmax(axis=1)
            scores = per_sample_scores(study.task, golds, [labels[at] for at in likely])
            part["abs_error of labels"] = scores["abs_error"]
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def is_written(arm: Arm) -> bool:
    """Whether an arm writes answers; controls of the likelihood alone are scored and no more."""
    return arm[0] in (NO_EDIT, *PROMPTS.values(), WRONG, *EDITS.values(), RANDOM)


def _scores(
    task: str, golds: Sequence[str], sources: Sequence[str], said: Sequence[str]
) -> dict[str, Any]:
    """Scores of generated answers, and of their form."""
    scores: dict[str, Any] = {
        **per_sample_scores(task, golds, said),
        "valid": [float(get_task(task).is_valid(text)) for text in said],
    }
    if get_task(task).labels:
        return scores | form_scores(said)
    echoes = [float(is_echo(*pair)) for pair in zip(said, sources, strict=True)]
    return {**scores, **form_of(task, golds, said), "echo": echoes}


# --- tables ---------------------------------------------------------------------------------------


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


def warning(run: RealRun, arm: str) -> str:
    """What makes the answers of an arm unfit for use; empty if nothing does."""
    told = []
    gain = change(run, arm, NATS)
    if gain.high < 0:
        told.append("the users' own texts are less likely")
    for name, words in (("empty", "empty"), ("refusal", "refusals")):
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
