"""One draw of the budget study: every method trained on a share of its material, and what it costs.

Cost is counted by what was really read and written, in tokens; the formula that makes FLOPs of it
is that of :mod:`chameleon_lib.kit.flops`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from chameleon_lib.core.backbone import Backbone
from chameleon_lib.core.chameleon import Case
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import Contrast, FittedDirections
from chameleon_lib.core.pairs import (
    PreferencePair,
    PreparedUser,
    answer_pairs,
    keep_different,
    pair_texts,
    write_insights,
    write_query_insights,
)
from chameleon_lib.errors import UserError
from chameleon_lib.kit.flops import Tokens, Weights, Work
from chameleon_lib.rivals.registry import Lesson, TrainedRival, trained
from chameleon_lib.rivals.settings import drawn
from chameleon_lib.rivals.tuned import TrainLog
from chameleon_lib.studies.arms import Exam, Group, Log
from chameleon_lib.studies.rivals import TunedStudy, said, seen_scores, settings_of, stored_tuning
from chameleon_lib.studies.run import Answers
from chameleon_lib.studies.study import Study

OURS = ("chameleon", "fitted")


# --- what it costs -------------------------------------------------------------------------------


def weights_of(backbone: Any) -> Weights:
    """Count the weights of an ``HFBackbone``."""
    model = backbone.model
    table = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight

    def size(module: Any) -> int:
        parts = {id(weight): weight.numel() for weight in module.parameters()}
        return sum(n for key, n in parts.items() if key not in (id(table), id(head)))

    if backbone.family == "decoder":
        every = size(model) + head.numel()
        return Weights(every, every, every)
    read, written = size(model.get_encoder()), size(model.get_decoder()) + head.numel()
    return Weights(read, written, read + written)


def tuning_work(log: TrainLog, family: str) -> Work:
    """Of a finished ALOE or DPO training; DPO's reference pass is in it."""
    forward, backward = Tokens(log.forward_tokens), Tokens(log.backward_tokens)
    if family != "decoder":
        # The reference reads every pair once, the training every pair equally often.
        answers = round(log.forward_tokens * log.trained_tokens / log.backward_tokens)
        forward = Tokens(log.forward_tokens - answers, answers)
        backward = Tokens(log.backward_tokens - log.trained_tokens, log.trained_tokens)
    return Work(forward, backward, log.trainable_params, added=log.params == "lora")


def fit_work(
    study: Study, contrasts: Sequence[Contrast], fit: FittedDirections, trainable: int
) -> Work:
    """Of a preference fit: prompts are read once, then answers alone pass through the model."""
    leashed = study.settings.fit_leash > 0
    read = _tokens(
        study,
        list(dict.fromkeys(contrast.prompt for contrast in contrasts)),
        [c.chosen for c in contrasts if c.rejected is not None or leashed],
    )
    passed = Tokens(0, fit.looked_tokens + fit.learned_tokens)
    return Work(read + passed, Tokens(0, fit.learned_tokens), trainable, added=True)


def direction_work(study: Study, kept: Sequence[PreferencePair]) -> Work:
    """Of the paper's directions: activations of both texts of every pair, and the CCS probes.

    A probe costs four operations per weight, text and epoch (two forward, two for its gradient);
    the SVD is far below that and left out.
    """
    settings = study.settings
    texts = [text for pair in kept for text in pair_texts(study.task, pair, settings)]
    read = _tokens(study, [context for context, _ in texts], [answer for _, answer in texts])
    probes = settings.ccs_epochs * settings.ccs_tries * study.backbone.n_layers
    return Work(read, probes=4 * probes * len(texts) * study.backbone.d)


def generation_work(
    study: Study, users: Sequence[PreparedUser], pairs: Sequence[PreferencePair]
) -> Work:
    """Of the synthetic pairs themselves: both insights of every user, both answers to every query.

    Every prompt counts in full, also where the kit reads what two of them share only once.
    ``users`` are at least those of the pairs, which are unfiltered.
    """
    task, settings = study.task, study.settings
    own = asking(users, {pair.query_id for pair in pairs})
    noted: Any = _Noting(study.backbone)
    write_insights(noted, task, [user.items for user in own], settings)
    written = [text for user in own for text in (user.insight_p, user.insight_n)]
    if settings.insight_scope == "query":
        write_query_insights(noted, task, own, settings)
        written += [text for user in own for both in user.query_insights for text in both]
    answer_pairs(noted, own, settings)
    written += [text for pair in pairs for text in (pair.answer_p, pair.answer_n)]
    return Work(_tokens(study, noted.prompts, written))


class _Noting:
    """A backbone that notes the prompts it is given, and writes nothing."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self.prompts: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def generate(self, prompts: Sequence[str], **_: Any) -> list[str]:
        self.prompts += prompts
        return [""] * len(prompts)


def _tokens(study: Study, prompts: Sequence[str], answers: Sequence[str]) -> Tokens:
    """An answer costs one token more than it has: the last of the prompt, or the start token."""
    backbone: Any = study.backbone
    read = sum(len(ids) for ids in backbone.codec.prompts(prompts))
    return Tokens(read, sum(len(ids) + 1 for ids in backbone.codec.answers(answers)))


# --- one draw ------------------------------------------------------------------------------------


def rivals() -> list[TrainedRival]:
    """The trained rivals: who learns from the same pairs, then who sees gold answers."""
    return sorted(trained(), key=lambda rival: rival.uses_gold)


@dataclass(frozen=True, eq=False)
class Lot:
    """The material of one draw.

    Attributes:
        study: Backbone, task, settings and store.
        group: Train users with gold answers.
    """

    study: Study
    group: Group

    @cached_property
    def case(self) -> Case:
        """All pairs; it reads the prompts of Table 1, whose fit at 100 % is then found again."""
        return self.study.case(self.group.pairs, self.group.index, self.group.users)

    @cached_property
    def pairs(self) -> list[PreferencePair]:
        """Those with two answers, the different ones first: rivals count their share on them."""
        every = [*self.case.kept, *self.case.identical]
        return [pair for pair in every if pair.answer_p.strip() and pair.answer_n.strip()]

    @cached_property
    def weights(self) -> Weights:
        """Of the backbone."""
        return weights_of(self.study.backbone)

    def chosen(self, share: float) -> list[PreferencePair]:
        """The pairs that DPO draws for a share, in the order of the lot."""
        at = drawn("dpo", len(self.pairs), share, self.case.seed)
        return [self.pairs[i] for i in sorted(at)]

    def log(self, work: Work, written: Sequence[PreferencePair], **counts: Any) -> Log:
        """What a method got and cost: its own work, and the writing of the pairs it learned from.

        ``counts`` are share, queries, gold, rows, steps, trainable and loss.
        """
        made = generation_work(self.study, self.group.users, written) if written else Work(Tokens())
        return {
            **counts,
            "forward": work.forward.total,
            "backward": work.backward.total,
            "flops": work.flops(self.weights),
            "generation": made.flops(self.weights),
        }

    def edits(self, share: float) -> tuple[dict[str, Edit], dict[str, Log]]:
        """Both edits from a share of the pairs, with what they cost.

        Raises:
            UserError: No pair of the share has two different answers.
        """
        study, pairs, case = self.study, self.chosen(share), self.case
        if share < 1:
            case = Case(study, *keep_different(pairs, study.settings), pairs, case.seed)
        if not case.kept:
            asked = f"{share:.0%} of {len(self.pairs)} pairs"
            raise UserError(f"{asked} hold no two different answers.")
        edits = {"chameleon": case.edit("paper"), "fitted": case.edit("fitted")}
        fit, size = case.fits["fitted"], study.backbone.n_layers * study.backbone.d
        common = {"share": share, "queries": len(pairs), "gold": 0, "rows": len(case.kept)}
        logs = {
            "chameleon": self.log(
                direction_work(study, case.kept),
                pairs,
                **common,
                steps=study.settings.ccs_epochs,
                trainable=size + study.backbone.n_layers,  # θ^N of every layer with its bias
            ),
            "fitted": self.log(
                fit_work(study, case.contrasts, fit, 2 * size),
                pairs,
                **common,
                steps=len(fit.loss),
                trainable=2 * size,
            ),
        }
        return edits, logs

    def tuned(self, exam: Exam, rival: TrainedRival, share: float) -> tuple[Answers, Log, Study]:
        """A rival trained on its share and asked, with what it cost and the tuned study."""
        study = self.study
        settings = settings_of(study, rival, share=share)
        lesson = Lesson(self.group.users, self.case.contrasts, study.settings)
        tuned = stored_tuning(study, rival, lesson, settings, self.case.seed)
        done, after = tuned.log, TunedStudy(study, tuned)
        answers = exam.of(after).answer({rival.id: (rival.prompt(settings), None)})[rival.id]
        log = self.log(
            tuning_work(done, study.backbone.family),
            [] if rival.uses_gold else self.chosen(share),
            share=share,
            queries=done.queries,
            gold=done.queries if done.uses_gold else 0,
            rows=done.rows + done.mix_rows,
            steps=done.steps,
            trainable=done.trainable_params,
            loss=list(done.loss),
        )
        return answers, log, after

    def seen_by(
        self, rival: TrainedRival, share: float, tuned: Study, plain: Mapping[str, str]
    ) -> Log:
        """How a tuned model answers the train queries it was trained on, beside the untouched one.

        ``plain`` are the untouched model's answers by query id; the scores are ``seen_scores``.
        """
        if rival.uses_gold:
            queries = [query.id for user in self.group.users for query in user.user.queries]
            asked = {queries[i] for i in drawn(rival.id, len(queries), share, self.case.seed)}
        else:
            kept, _ = keep_different(self.chosen(share), self.study.settings)
            asked = {pair.query_id for pair in kept}
        users = asking(self.group.users, asked)
        after = said(tuned, users, rival.prompt(settings_of(self.study, rival)))
        return seen_scores(self.study.task, users, after, plain)


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
