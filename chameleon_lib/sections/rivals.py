"""The other methods of the paper's tables, asked by the same exam: LLM-REC, ALOE and DPO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chameleon_lib.baselines import Tuned
from chameleon_lib.baselines.llm_rec import answer_prompts, write_summaries
from chameleon_lib.baselines.llm_rec_prompts import variants_for
from chameleon_lib.core.contrasts import contrasts_from_pairs
from chameleon_lib.core.preferences import PreferencePair, PreparedUser, keep_different
from chameleon_lib.kit.progress import tell
from chameleon_lib.sections.answering import Answers, Exam
from chameleon_lib.sections.seen import said, seen_scores
from chameleon_lib.sections.study import Study
from chameleon_lib.sections.tunings import (
    TunedStudy,
    aloe_settings,
    dpo_settings,
    stored_aloe,
    stored_dpo,
    training_log,
)

Log = dict[str, Any]


def prompted_rivals(exam: Exam) -> dict[str, list[Answers]]:
    """LLM-REC's three variants without raw history (those of them that the task has)."""
    study = exam.study
    variants = [name for name in variants_for(study.task) if not name.endswith("_hist")]
    for variant in variants:
        summaries = _summaries(study, exam.users, variant)
        exam.add_prompts(variant, answer_prompts(exam.users, summaries, variant, study.settings))
    answers = exam.answer({variant: (variant, None) for variant in variants})
    return {name: [answer] for name, answer in answers.items()}


def tunings_of(
    study: Study, group: Sequence[PreparedUser], pairs: Sequence[PreferencePair], seed: int
) -> dict[str, Tuned]:
    """ALOE on the group's gold answers, and DPO on exactly the pairs the edits are made from.

    Args:
        study: Of the untouched backbone.
        group: Train users with gold answers.
        pairs: Their pairs, unfiltered.
        seed: Number of the draw.
    """
    kept, identical = keep_different(pairs, study.settings)
    contrasts = contrasts_from_pairs(study.task, kept, identical, study.settings)
    return {
        "aloe": stored_aloe(study, group, aloe_settings(study), seed),
        "dpo": stored_dpo(study, contrasts, dpo_settings(study), seed),
    }


def trained_rivals(
    exam: Exam,
    group: Sequence[PreparedUser],
    pairs: Sequence[PreferencePair],
    seed: int,
    before: Mapping[str, str],
) -> dict[str, tuple[Answers, Log]]:
    """What ALOE and DPO answer, with the logs of their trainings.

    Args:
        exam: The test users' queries.
        group: Train users with gold answers.
        pairs: Their pairs, unfiltered.
        seed: Number of the draw.
        before: Query id of train users → Instruct's answer, which a rival must beat on the users
            it was trained on (``seen`` of its log).
    """
    study = exam.study
    kinds = {"aloe": "instruct" if aloe_settings(study).history == "a3" else "unseen"}
    found = {}
    for name, tuned in tunings_of(study, group, pairs, seed).items():
        kind, after = kinds.get(name, "instruct"), TunedStudy(study, tuned)
        asked = exam.of(after).answer({name: (kind, None)})
        seen = seen_scores(study.task, group, said(after, group, kind), before)
        found[name] = (asked[name], {**training_log(tuned.log), "seen": seen})
    return found


def _summaries(study: Study, users: Sequence[PreparedUser], variant: str) -> list[str]:
    """LLM-REC's summaries, one per query, kept in the store per user."""

    def compute(batch: list[PreparedUser]) -> list[list[str]]:
        tell(f"{study.backbone_id} {study.task}: {variant} summaries")
        written = iter(write_summaries(study.backbone, batch, variant, study.settings))
        return [[next(written) for _ in user.user.queries] for user in batch]

    rows = study.store.map(
        "summaries",
        users,
        compute,
        inputs={"variant": variant, **study.inputs("decode_", "prompts_", "model_")},
        key_of=lambda user: [
            [[item.text, item.label] for item in user.items],
            [query.text for query in user.user.queries],
        ],
        batch_size=64,
        label=f"{study.backbone_id} {study.task} {variant}",
        modules=("chameleon_lib.baselines.llm_rec", "chameleon_lib.backbones"),
        about=lambda user: [user.user.id],
    )
    return [summary for row in rows for summary in row]
