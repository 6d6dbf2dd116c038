"""One draw of the time-budget study: its material, and every method trained on a share of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chameleon_lib.baselines.options import drawn
from chameleon_lib.core.contrasts import contrasts_from_pairs, gold_contrasts
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import Contrast
from chameleon_lib.core.plain_prompts import PlainPrompts
from chameleon_lib.core.preferences import (
    PreferencePair,
    PreparedUser,
    check_pair_count,
    keep_different,
)
from chameleon_lib.errors import UserError
from chameleon_lib.kit.flops import Weights
from chameleon_lib.sections.answering import Answers, Exam
from chameleon_lib.sections.fits import timed_directions, timed_fit
from chameleon_lib.sections.seconds import Rates
from chameleon_lib.sections.seen import said, seen_scores
from chameleon_lib.sections.study import Study
from chameleon_lib.sections.time_budget.costs import (
    direction_work,
    fit_work,
    generation_work,
    tuning_work,
)
from chameleon_lib.sections.tunings import (
    TunedStudy,
    aloe_settings,
    dpo_settings,
    stored_aloe,
    stored_dpo,
)

Log = dict[str, Any]


@dataclass(frozen=True)
class Lot:
    """The material of one draw.

    Attributes:
        study: Backbone, task, settings and store.
        group: Train users with gold answers.
        pairs: Their pairs with two answers, those that differ first; DPO counts its share on them.
        contrasts: What fits and DPO learn from; one per pair.
        together: Prompts that Table 1 reads together: its fit at 100 % is then found again.
        index: Number of the draw.
    """

    study: Study
    group: list[PreparedUser]
    pairs: list[PreferencePair]
    contrasts: list[Contrast]
    together: list[str]
    index: int

    @classmethod
    def of(
        cls, study: Study, group: list[PreparedUser], pairs: Sequence[PreferencePair], index: int
    ) -> Lot:
        """The material of a group.

        Args:
            study: Backbone, task, settings and store.
            group: Train users with gold answers.
            pairs: Pairs of all train users, unfiltered.
            index: Number of the draw.
        """
        ids = {user.user.id for user in group}
        own = [pair for pair in pairs if pair.user_id in ids]
        kept, identical = keep_different(own, study.settings)
        check_pair_count(len(kept), study.settings)
        asked = [p for p in [*kept, *identical] if p.answer_p.strip() and p.answer_n.strip()]
        contrasts = contrasts_from_pairs(study.task, kept, identical, study.settings)
        gold = gold_contrasts(study.task, group, own, study.settings)
        together = [contrast.prompt for contrast in [*contrasts, *gold]]
        return cls(study, group, asked, contrasts, together, index)

    def chosen(self, share: float) -> list[int]:
        """The pairs that DPO draws for a share, in the order of the lot."""
        return sorted(drawn("dpo", len(self.pairs), share, self.index))


def asking(users: Sequence[PreparedUser], queries: set[str]) -> list[PreparedUser]:
    """The users with these of their queries; users with none of them are left out."""
    found = []
    for prepared in users:
        at = [i for i, query in enumerate(prepared.user.queries) if query.id in queries]
        if at:
            user = replace(prepared.user, queries=tuple(prepared.user.queries[i] for i in at))
            insights = tuple(prepared.query_insights[i] for i in at if prepared.query_insights)
            found.append(replace(prepared, user=user, query_insights=insights))
    return found


def edit_lot(
    lot: Lot, share: float, weights: Weights, rates: Rates
) -> tuple[Log, dict[str, Edit]]:
    """Both edits from a share of the pairs, with what they cost."""
    study = lot.study
    at = lot.chosen(share)
    contrasts = [lot.contrasts[i] for i in at]
    kept = [lot.pairs[i] for i in at if lot.contrasts[i].rejected is not None]
    if not kept:
        raise UserError(f"{share:.0%} of {len(lot.pairs)} pairs hold no two different answers.")
    made = generation_work(study, lot.group, [lot.pairs[i] for i in at])
    texts = lot.together if share == 1 else [contrast.prompt for contrast in contrasts]
    h_p, h_n = study.activations(kept)
    main, found_seconds = timed_directions(study, "paper", h_p, h_n, lot.index)
    fitted, record, fit_seconds = timed_fit(
        study, contrasts, PlainPrompts(study.backbone, texts), lot.index, "fitted"
    )
    size = study.backbone.n_layers * study.backbone.d
    writing = rates.writing * len(at)
    probe = size + study.backbone.n_layers  # θ^N of every layer with its bias
    common = {
        "share": share,
        "queries": len(at),
        "gold": 0,
        "rows": len(kept),
        "generation": made.flops(weights),
        "generated": made.forward.total,
    }
    finding, fitting = direction_work(study, kept), fit_work(study, contrasts, record, 2 * size)
    log = {
        "chameleon": {
            **common,
            "steps": study.settings.ccs_epochs,
            "trainable": probe,
            "forward": finding.forward.total,
            "backward": 0,
            "flops": finding.flops(weights),
            "measured": {"seconds": found_seconds + rates.reading * len(kept), "pairs": writing},
        },
        "fitted": {
            **common,
            "steps": len(record["loss"]),
            "trainable": 2 * size,
            "forward": fitting.forward.total,
            "backward": fitting.backward.total,
            "flops": fitting.flops(weights),
            "measured": {"seconds": fit_seconds, "pairs": writing},
        },
    }
    return log, {"chameleon": main.to_edit(study.settings), "fitted": fitted}


def tune_lot(
    exam: Exam, lot: Lot, name: str, share: float, weights: Weights, rates: Rates
) -> tuple[Answers, Log, Study]:
    """A rival trained on its share and asked, with what it cost and the tuned study."""
    study = exam.study
    generation = generated = 0
    writing = 0.0
    if name == "dpo":
        settings = dpo_settings(study, share=share)
        tuned = stored_dpo(study, lot.contrasts, settings, lot.index)
        made = generation_work(study, lot.group, [lot.pairs[i] for i in lot.chosen(share)])
        generation, generated = made.flops(weights), made.forward.total
        writing = rates.writing * tuned.log.queries
    else:
        aloe = aloe_settings(study, share=share)
        tuned = stored_aloe(study, lot.group, aloe, lot.index)
    done, work = tuned.log, tuning_work(tuned.log, study.backbone.family)
    after = TunedStudy(study, tuned)
    answers = exam.of(after).answer({name: (kind_of(study, name), None)})[name]
    log = {
        "share": share,
        "queries": done.queries,
        "gold": done.queries if done.uses_gold else 0,
        "rows": done.rows + done.mix_rows,
        "generation": generation,
        "generated": generated,
        "steps": done.steps,
        "trainable": done.trainable_params,
        "forward": work.forward.total,
        "backward": work.backward.total,
        "flops": work.flops(weights),
        "loss": list(done.loss),
        "measured": {"seconds": done.seconds, "pairs": writing},
    }
    return answers, log, after


def kind_of(study: Study, name: str) -> str:
    """The prompt kind that a rival was trained on and is asked with."""
    with_history = name == "dpo" or aloe_settings(study).history == "a3"
    return "instruct" if with_history else "unseen"


def seen_by(
    lot: Lot, name: str, share: float, tuned: Study, plain: Mapping[str, str]
) -> Log:
    """How a tuned model answers the train queries it was trained on, beside the untouched one.

    Args:
        lot: The material of the draw.
        name: ``dpo`` or ``aloe``.
        share: Share of the material it was trained on.
        tuned: The model after the training.
        plain: Query id → answer of the untouched model.

    Returns:
        :func:`~chameleon_lib.sections.seen.seen_scores` of the queries trained on.
    """
    if name == "dpo":
        at = [i for i in lot.chosen(share) if lot.contrasts[i].rejected is not None]
        asked = {lot.pairs[i].query_id for i in at}
    else:
        queries = [query.id for user in lot.group for query in user.user.queries]
        asked = {queries[i] for i in drawn("aloe", len(queries), share, lot.index)}
    users = asking(lot.group, asked)
    return seen_scores(lot.study.task, users, said(tuned, users, kind_of(lot.study, name)), plain)
