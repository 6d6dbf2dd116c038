"""The registered rivals at work: prompted or trained, kept in the artifact store, then asked.

Nothing here names a rival: who is registered (`chameleon_lib.rivals`) stands in the tables. A
comparison with a trained rival that learned nothing would be void, so each is also asked the
queries of its own training users, beside the plain model.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.backbone import Backbone
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import contrasts_from_pairs
from chameleon_lib.core.pairs import PreferencePair, PreparedUser, keep_different
from chameleon_lib.core.task import get_task
from chameleon_lib.data.metrics import higher_is_better, per_sample_scores
from chameleon_lib.errors import UserError
from chameleon_lib.kit.progress import tell
from chameleon_lib.kit.stats import Estimate, bootstrap_metric
from chameleon_lib.rivals.registry import (
    Lesson,
    PromptedRival,
    Rival,
    TrainedRival,
    prompted,
    trained,
)
from chameleon_lib.rivals.tuned import TrainLog, Tuned, tuned_backbone, tuned_fingerprint
from chameleon_lib.studies.arms import Arm, Exam, Group, Log, Reference
from chameleon_lib.studies.data import without_gold
from chameleon_lib.studies.frame import STATISTICS, group_sums
from chameleon_lib.studies.run import Answers
from chameleon_lib.studies.study import Study


class TunedStudy(Study):
    """The stages of a backbone after a training; the model is built only if something is asked."""

    def __init__(self, study: Study, tuned: Tuned) -> None:
        name = f"{study.backbone_id}+{tuned.log.method}"
        super().__init__(study.profile, name, study.task, study.settings, study.store)
        self._study, self._tuned = study, tuned

    @cached_property
    def backbone(self) -> Backbone:
        """The tuned model."""
        return tuned_backbone(_trainable(self._study), self._tuned)

    @property
    def fingerprint(self) -> str:
        """As the tuned model's, without building it."""
        return tuned_fingerprint(self._study.fingerprint, self._tuned)


def prompted_rivals(exam: Exam) -> dict[Arm, Answers]:
    """What the prompted rivals that suit the task answer."""
    study = exam.study
    chosen = [rival for rival in prompted() if rival.suits(study.task)]
    for rival in chosen:
        written = _written(study, exam.users, rival)
        exam.add_prompts(rival.id, rival.prompts(exam.users, written, study.settings))
    return exam.answer({Arm(rival.id): (rival.id, None) for rival in chosen})


def _written(study: Study, users: Sequence[PreparedUser], rival: PromptedRival) -> list[str]:
    """What a prompted rival writes, one text per query, kept in the store per user."""

    def compute(batch: list[PreparedUser]) -> list[list[str]]:
        tell(f"{study.backbone_id} {study.task}: {rival.id} summaries")
        written = iter(rival.write(study.backbone, batch, study.settings))
        return [[next(written) for _ in user.user.queries] for user in batch]

    rows = study.store.map(
        "summaries",
        users,
        compute,
        inputs={
            "variant": rival.id,
            **study.inputs("decode_", "prompts_", "model_"),
            **_own_code(rival),
        },
        key_of=lambda user: [
            [[item.text, item.label] for item in user.items],
            [query.text for query in user.user.queries],
        ],
        batch_size=64,
        label=f"{study.backbone_id} {study.task} {rival.id}",
        modules=(*_modules(rival), "chameleon_lib.backbones"),
    )
    return [summary for row in rows for summary in row]


def _modules(rival: Rival) -> tuple[str, ...]:
    """The kit's module of a rival, whose code is in the keys; none for one made elsewhere."""
    name = type(rival).__module__
    return (name,) if name.startswith("chameleon_lib.") else ()


def _own_code(rival: Rival) -> dict[str, Any]:
    """For a key, if a rival is made outside the kit, as in a notebook: its fields and methods."""
    if _modules(rival):
        return {}
    own = {
        name: inspect.getsource(found)
        for name, found in vars(type(rival)).items()
        if inspect.isfunction(found) and not name.startswith("__")
    }
    return {"rival": repr(rival), "code": own}


def settings_of(study: Study, rival: TrainedRival, **changes: Any) -> Any:
    """The recipe of a rival at the scale of the study's profile."""
    embedded = study.backbone_id.startswith("demo:")
    return rival.settings(study.profile, embedded, study.backbone.family, **changes)


def lesson_of(
    study: Study, group: Sequence[PreparedUser], pairs: Sequence[PreferencePair]
) -> Lesson:
    """What the rivals may learn from: the group's gold answers and exactly the edits' pairs.

    ``study`` is that of the untouched backbone, and the pairs are unfiltered.
    """
    kept, identical = keep_different(pairs, study.settings)
    contrasts = contrasts_from_pairs(study.task, kept, identical, study.settings)
    return Lesson(group, contrasts, study.settings)


def stored_tuning(
    study: Study,
    rival: TrainedRival,
    lesson: Lesson,
    settings: Any,
    seed: int,
) -> Tuned:
    """A rival trained on a lesson, kept in the store."""

    def compute() -> dict[str, Any]:
        tell(f"{study.backbone_id} {study.task}: training {rival.id}, draw {seed}")
        backbone = _trainable(study)
        return rival.fit(backbone, lesson, settings, seed=seed).record()

    record = study.store.get_or_compute(
        rival.id,
        {
            "backbone": study.fingerprint,
            **rival.material(lesson, settings),
            "settings": settings.canonical(),
            "seed": seed,
            "max_steps": None,  # the settings' own
            **_own_code(rival),
        },
        compute,
        modules=_modules(rival) or ("chameleon_lib.rivals.registry",),
    )
    return Tuned.from_record(record)


def tunings_of(study: Study, group: Group) -> dict[str, Tuned]:
    """Every trained rival's training of a draw, by row id; the group has gold answers."""
    if not study.profile.trains:
        return {}
    lesson = lesson_of(study, group.users, group.pairs)
    return {
        rival.id: stored_tuning(study, rival, lesson, settings_of(study, rival), group.index)
        for rival in trained()
    }


def trained_rivals(
    exam: Exam, group: Group, before: Mapping[str, str]
) -> dict[str, tuple[Answers, Log]]:
    """What the trained rivals answer, with the logs of their trainings.

    Args:
        exam: The test users' queries.
        group: Train users with gold answers.
        before: Query id of train users → Instruct's answer, which a rival must beat on the users
            it was trained on (``seen`` of its log).
    """
    study = exam.study
    if not study.profile.trains:
        return {}
    tunings = tunings_of(study, group)
    found = {}
    for rival in trained():
        tuned = tunings[rival.id]
        kind, after = rival.prompt(settings_of(study, rival)), TunedStudy(study, tuned)
        asked = exam.of(after).answer({rival.id: (kind, None)})
        seen = seen_scores(study.task, group.users, said(after, group.users, kind), before)
        found[rival.id] = (asked[rival.id], {**training_log(tuned.log), "seen": seen})
    return found


def training_log(log: TrainLog) -> Log:
    """What a table may hold of a training: everything but the wall clock."""
    return {name: value for name, value in asdict(log).items() if name != "seconds"}


def _trainable(study: Study) -> HFBackbone:
    backbone = study.backbone
    if not isinstance(backbone, HFBackbone):
        raise UserError(f"{study.backbone_id} is no model that can be trained.")
    return backbone


# ---- Did a trained rival learn?


def said(
    study: Study, users: Sequence[PreparedUser], kind: str, edit: Edit | None = None
) -> dict[str, str]:
    """Query id → what a model says to it; nothing about the golds reaches it."""
    blind = [
        replace(user, user=plain)
        for user, plain in zip(users, without_gold([u.user for u in users]), strict=True)
    ]
    queries = [query.id for user in users for query in user.user.queries]
    nothing = Reference([""] * len(queries), [""] * len(queries))  # no margin is asked for
    texts = Exam(study, blind, nothing).answer({kind: (kind, edit)})[kind].texts
    return dict(zip(queries, texts, strict=True))


def seen_scores(
    task: str,
    users: Sequence[PreparedUser],
    after: Mapping[str, str],
    before: Mapping[str, str],
) -> Log:
    """The task's first metric on training queries, for the log of a draw.

    Args:
        task: Task name.
        users: Train users with gold answers and the queries that were trained on.
        after: Query id → answer of the tuned model.
        before: Query id → answer of the untouched model.

    Returns:
        ``users``, ``after`` and ``before``, one entry per query each.
    """
    gold = {query.id: str(query.gold) for user in users for query in user.user.queries}
    score = STATISTICS[get_task(task).metrics[0]][0]
    rows = {
        name: per_sample_scores(task, list(gold.values()), [texts[query] for query in gold])[score]
        for name, texts in (("after", after), ("before", before))
    }
    return {
        "users": [user.user.id for user in users for _ in user.user.queries],
        **{name: [float(value) for value in values] for name, values in rows.items()},
    }


def change_on_seen(logs: Sequence[Mapping[str, Any]]) -> Estimate:
    """After the training minus before it, over the ``seen`` entries of several trainings.

    Users of all groups are pooled; a user in several groups counts once, with the mean of them.
    """
    after, before = (
        group_sums([(log["seen"]["users"], log["seen"][arm]) for log in logs])
        for arm in ("after", "before")
    )
    return replace(bootstrap_metric("mean", after, before), seeds=len(logs))


def has_learned(task: str, logs: Sequence[Mapping[str, Any]], gain: Estimate) -> bool:
    """Whether every loss fell and the training users gain beyond chance."""
    ends = [quarters(log["loss"]) for log in logs]
    better = gain.low > 0 if higher_is_better(get_task(task).metrics[0]) else gain.high < 0
    return better and all(last < first for first, last in ends)


def quarters(loss: Sequence[float]) -> tuple[float, float]:
    """Mean loss of the first and of the last quarter of the steps."""
    size = max(1, len(loss) // 4)
    return sum(loss[:size]) / size, sum(loss[-size:]) / size
