"""What the demo's rates and steps were chosen from, as a script.

    python -m workshop.candidates --help

Every candidate is trained on groups of train users of the embedded world. It is read on dev users,
whom no table of the kit counts, and on the users it was trained on; no test user is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import PreferencePair, PreparedUser
from chameleon_lib.core.task import get_task
from chameleon_lib.errors import UserError
from chameleon_lib.kit.command_line import Parser, positive
from chameleon_lib.kit.profiles import get_profile
from chameleon_lib.kit.stats import Estimate
from chameleon_lib.rivals.registry import trained_rival
from chameleon_lib.studies.arms import draw_group, with_gold
from chameleon_lib.studies.data import TaskData, load_task_data, without_gold
from chameleon_lib.studies.rivals import (
    Log,
    TunedStudy,
    change_on_seen,
    has_learned,
    lesson_of,
    said,
    seen_scores,
    settings_of,
    stored_tuning,
)
from chameleon_lib.studies.study import Study, settings_for
from workshop import run_script

DEV_USERS = 150
# Method → values of its settings that were tried; the rest are those of the demo.
CANDIDATES: dict[str, tuple[Mapping[str, Any], ...]] = {
    "aloe": (
        {"epochs": 1, "accumulation": 1, "lr": 1e-3},
        {"epochs": 2, "accumulation": 1, "lr": 1e-3},
        {"epochs": 2, "accumulation": 2, "lr": 1e-3},
        {"epochs": 2, "accumulation": 2, "lr": 2e-3},
        {"epochs": 2, "accumulation": 2, "lr": 4e-3},
        {"epochs": 3, "accumulation": 2, "lr": 1e-3},
        {"epochs": 3, "accumulation": 2, "lr": 2e-3},
        {"epochs": 3, "accumulation": 2, "lr": 1e-3, "loss_on": "full"},
    ),
    "dpo": (
        {"epochs": 1, "batch": 4, "lr": 1e-3},
        {"epochs": 1, "batch": 4, "lr": 2e-3},
        {"epochs": 1, "batch": 8, "lr": 4e-3},
        {"epochs": 2, "batch": 8, "lr": 1e-3},
        {"epochs": 2, "batch": 8, "lr": 2e-3},
    ),
    "fitted": (
        {"fit_steps": 40, "fit_lr": 0.05, "fit_batch": 32},
        {"fit_steps": 20, "fit_lr": 0.1, "fit_batch": 32},
        {"fit_steps": 20, "fit_lr": 0.1, "fit_batch": 16},
        {"fit_steps": 20, "fit_lr": 0.1, "fit_batch": 8},
        {"fit_steps": 15, "fit_lr": 0.15, "fit_batch": 16},
    ),
}


@dataclass(frozen=True)
class Candidate:
    """How one choice of settings came out.

    Attributes:
        settings: The values that were tried.
        in_use: Whether they are the demo's own.
        dev: Change of the task's first metric against Instruct on dev users.
        seen: The same on the users it was trained on.
        learned: Whether every loss fell and the users it was trained on gain beyond chance.
        seconds: Mean seconds of a training.
    """

    settings: Mapping[str, Any]
    in_use: bool
    dev: Estimate
    seen: Estimate
    learned: bool
    seconds: float


def compare(study: Study, data: TaskData, method: str, draws: int) -> Iterator[Candidate]:
    """Train every candidate of a method on ``draws`` random groups of train users.

    Each is read as soon as it is trained.
    """
    train, _ = study.prepare(without_gold(data.train))
    blind, _ = study.prepare(without_gold(data.dev))
    dev, pairs = with_gold(blind, data.dev), study.pairs(train)
    groups = [
        with_gold(draw_group(train, study.settings.group_size, index), data.train)
        for index in range(draws)
    ]
    before = said(study, [*train, *dev], "instruct")
    fitted = method == "fitted"
    used = (study.settings if fitted else settings_of(study, trained_rival(method))).canonical()
    for tried in CANDIDATES[method]:
        seen: list[Log] = []
        read: list[Log] = []
        took = 0.0
        for index, group in enumerate(groups):
            ids = {user.user.id for user in group}
            own = [pair for pair in pairs if pair.user_id in ids]
            tuned, edit, loss, seconds = _train(study, group, own, method, tried, index)
            took += seconds / draws
            for logs, users in ((seen, group), (read, dev)):
                after = said(tuned, users, "instruct", edit)
                scores = seen_scores(study.task, users, after, before)
                logs.append({"seen": scores, "loss": loss})
        gain = change_on_seen(seen)
        learned = has_learned(study.task, seen, gain)
        in_use = dict(tried) == {name: used[name] for name in tried}
        yield Candidate(tried, in_use, change_on_seen(read), gain, learned, took)


def _train(
    study: Study,
    group: Sequence[PreparedUser],
    pairs: Sequence[PreferencePair],
    method: str,
    tried: Mapping[str, Any],
    seed: int,
) -> tuple[Study, Edit | None, Sequence[float], float]:
    """The study to ask, the edit to ask it under, the loss per step and the seconds."""
    lesson = lesson_of(study, group, pairs)
    if method == "fitted":
        settings = study.settings.with_(**tried)
        other = Study(study.profile, study.backbone_id, study.task, settings, study.store)
        fit = other.preference_fit(lesson.contrasts, seed=seed)
        return study, fit.edit, fit.loss, fit.seconds
    rival = trained_rival(method)
    tuned = stored_tuning(study, rival, lesson, settings_of(study, rival, **tried), seed)
    return TunedStudy(study, tuned), None, tuned.log.loss, tuned.log.seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see ``--help``.

    Raises:
        UserError: An unknown method, task or backbone.
    """
    demo = get_profile("demo")
    parser = Parser(
        description="Compare what the demo's rates and steps were chosen from, on train and dev "
        "users of the embedded world.",
        epilog="A star marks what is in use. Finished trainings are kept: a killed run goes on.",
        allow_abbrev=False,
    )
    known = {"method": tuple(CANDIDATES), "task": demo.tasks, "backbone": demo.studied}
    for name, values in known.items():
        parser.add_argument(f"--{name}", default="", help=f"{', '.join(values)}; default: all")
    parser.add_argument("--users", type=positive, default=DEV_USERS, metavar="N", help="dev users")
    parser.add_argument("--draws", type=positive, default=4, metavar="N", help="random groups")
    options = vars(parser.parse_args(argv))
    for name, values in known.items():
        if options[name] and options[name] not in values:
            raise UserError(f"--{name} is '{options[name]}'; choose one of {', '.join(values)}.")
    profile = replace(demo, n_dev=options["users"])
    for task in [options["task"]] if options["task"] else known["task"]:
        data = load_task_data(profile, task)
        for backbone in [options["backbone"]] if options["backbone"] else known["backbone"]:
            study = Study(profile, backbone, task, settings_for(profile))
            for method in [options["method"]] if options["method"] else known["method"]:
                _show(study, data, method, options["draws"])
    return 0


def _show(study: Study, data: TaskData, method: str, draws: int) -> None:
    where = f"{study.task.replace('_', '-')}, {study.backbone_id}"
    metric = get_task(study.task).metrics[0]
    print(f"{method} on {where}: change of {metric} against Instruct")
    for found in compare(study, data, method, draws):
        values = ", ".join(f"{name} {value}" for name, value in found.settings.items())
        print(
            f"{'*' if found.in_use else ' '} {values}: dev users {_interval(found.dev)}; seen "
            f"users {_interval(found.seen)}; learned: {'yes' if found.learned else 'no'}; "
            f"{found.seconds:.1f} s",
            flush=True,
        )


def _interval(found: Estimate) -> str:
    return (
        f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}] "
        f"(n {found.n}, {found.seeds} groups)"
    )


if __name__ == "__main__":
    raise SystemExit(run_script(main))
