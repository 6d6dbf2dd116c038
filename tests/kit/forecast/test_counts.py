"""The forecast against what embedded models really read and wrote, stage by stage."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.kit.forecast import served
from chameleon_lib.kit.forecast.known import MODELS
from chameleon_lib.kit.forecast.scope import Scope
from chameleon_lib.kit.forecast.studies import StageCost, stage_costs
from chameleon_lib.kit.paths import root
from chameleon_lib.kit.profiles import PROFILES, RunProfile
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.sections import study as study_module
from chameleon_lib.sections.group_size import study as group_size
from chameleon_lib.sections.loading import settings_for
from chameleon_lib.sections.per_user import study as per_user
from chameleon_lib.sections.serving import answers, solvers
from chameleon_lib.sections.serving import study as serving
from chameleon_lib.sections.unseen_users import study as unseen_users
from tests.backbones.demo.small import HashEmbedder
from tests.kit.forecast.meter import Counted, Meter

TOLERANCE = 0.2
QUICK: dict[str, Any] = {
    "pairs_on_too_few": "warn", "ccs_epochs": 5, "ccs_tries": 2, "fit_patience": 100,
}  # fmt: skip
SIZES, FIT = (1, 8, 20), 8


def profile_of(backbone: str, task: str) -> RunProfile:
    """One embedded model on one task, with few users."""
    return replace(
        PROFILES["demo"], backbones=(backbone,), studied=(backbone,), tasks=(task,),
        n_train=32, n_dev=2, n_test=12, draws=1, repeats=1, group_size=20, workers=1,
    )  # fmt: skip


FIGURE_4 = root() / "outputs" / "demo" / "tables" / "fig4_b_points.csv"


def points() -> list[dict[str, str]]:
    """What every training of figure 4 cost in the committed demo run."""
    if not FIGURE_4.is_file():
        return []
    with FIGURE_4.open(encoding="utf-8", newline="") as handle:
        return [row for row in csv.DictReader(handle) if row["share"]]


Study = Callable[..., Any]
STUDIES: dict[str, Study] = {
    "01": per_user.run,
    "02": unseen_users.run,
    "03": partial(group_size.run, sizes=",".join(map(str, SIZES))),
}


def measured(
    profile: RunProfile, numbers: tuple[str, ...], folder: Path, patch: pytest.MonkeyPatch
) -> dict[str, dict[str, Counted]]:
    """What notebooks really send through the model, one after the other in one store."""
    embedder = HashEmbedder()
    patch.setattr(study_module, "open_embedder", lambda *_: embedder)
    # Probes have no tokens, so a few steps do. When held-out users stop a fit depends on the users:
    # here none is stopped.
    settings = settings_for(profile, fit_steps=FIT, **QUICK)
    found = {}
    for number in numbers:
        meter = Meter()
        with meter.watching(patch):
            options = {"tasks": profile.tasks} if number == "03" else {}
            STUDIES[number](profile, settings, store=ArtifactStore(folder), **options)
        found[number] = dict(meter.stages)
    return found


def compared(costs: list[StageCost], counted: dict[str, Counted]) -> dict[str, tuple[float, float]]:
    """Stage and quantity → forecast and measured; trainings count tokens of both kinds together."""
    pairs: dict[str, tuple[float, float]] = {}
    for cost in costs:
        if cost.stage == "CCS":
            continue
        seen = counted.get(cost.stage, Counted())
        pairs[f"{cost.stage} texts"] = (cost.prompts, seen.prompts)
        pairs[f"{cost.stage} backward"] = (cost.backward, seen.backward)
        if cost.stage in ("ALOE", "DPO"):
            pairs[f"{cost.stage} tokens"] = (cost.read + cost.written, seen.read)
        else:
            pairs[f"{cost.stage} read"] = (cost.read, seen.read)
            pairs[f"{cost.stage} written"] = (cost.written, seen.written)
    return pairs


@pytest.mark.parametrize(
    ("backbone", "task", "numbers"),
    [("demo:decoder:0", "LaMP_2", ("01", "02", "03")), ("demo:encdec:0", "LaMP_7", ("01",))],
)
def test_texts_and_tokens_of_every_stage_are_within_a_fifth_of_what_was_measured(
    backbone: str, task: str, numbers: tuple[str, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    profile = profile_of(backbone, task)
    scope = Scope(profile, sizes=SIZES, fit_steps=FIT)
    counted = measured(profile, numbers, tmp_path, monkeypatch)
    wrong = []
    for at, number in enumerate(numbers):
        costs = stage_costs(scope, [number], numbers[:at])
        for name, (forecast, seen) in compared(costs, counted[number]).items():
            if abs(forecast - seen) > TOLERANCE * seen + 1:
                wrong.append(f"{number} {name}: forecast {forecast:.0f}, measured {seen}")
        unexpected = {stage for stage, count in counted[number].items() if count.prompts}
        missed = unexpected - {cost.stage for cost in costs} - {"elsewhere"}
        assert not missed, f"{number}: the forecast has no {missed}"
    assert wrong == []


@pytest.mark.parametrize("backbone", ["demo:decoder:0", "demo:encdec:0"])
def test_serving_is_within_a_fifth_of_what_was_measured(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = profile_of(backbone, served.SERVED_TASK)
    monkeypatch.setattr(study_module, "open_embedder", lambda *_: HashEmbedder())
    meter, store = Meter(), ArtifactStore(tmp_path)
    with meter.watching(monkeypatch):
        own = serving.settings_of(profile, **QUICK)
        for service in serving.run(profile, own, task=served.SERVED_TASK, store=store):
            rows = answers.one_query(service)
            for _ in ("all rows", "PEFT, whose calls are not the backbone's own"):
                answers.together(service, rows)
            answers.alone(service, rows)
            answers.whose_edit(service)
        solvers.compare_solvers(profile, settings_for(profile, **QUICK), store=store)
    counted = dict(meter.stages)
    asked = [counted.pop("evaluation"), counted.pop("elsewhere")]
    counted["evaluation"] = Counted(
        *(sum(getattr(part, item.name) for part in asked) for item in fields(Counted))
    )
    costs = stage_costs(Scope(profile), ["07"])
    assert {cost.stage for cost in costs} - {"CCS"} == set(counted)
    wrong = [
        f"{name}: forecast {forecast:.0f}, measured {seen}"
        for name, (forecast, seen) in compared(costs, counted).items()
        if abs(forecast - seen) > TOLERANCE * seen + 1
    ]
    assert wrong == []


@pytest.mark.skipif(not FIGURE_4.is_file(), reason="outputs/demo is not complete here")
@pytest.mark.parametrize("row", points() or [{}], ids=lambda row: " ".join(
    [row.get("family", "")[:7], row.get("method", "")[:16], row.get("share", "")]))  # fmt: skip
def test_fits_and_trainings_agree_with_the_committed_demo_run(row: dict[str, str]) -> None:
    scope = Scope(PROFILES["demo"])
    family = "decoder" if row["family"].startswith("decoder") else "encdec"
    cell = scope.cell(MODELS[f"demo:{family}:0"], "LaMP_2")
    share, group = float(row["share"]), scope.profile.group_size
    kept = cell.shape.kept * share * group
    if row["method"].startswith("CHAMELEON fitted"):
        cell.fits("", share * group, ("fitted",))
    elif row["method"].startswith("CHAMELEON"):
        cell.activations("", kept)
        cell.ccs("", kept, 1)
    elif row["method"].startswith("DPO"):
        cell.dpo("", kept)
    else:
        cell.aloe("", group, share)
    work = [piece.work for piece in cell.pieces.values()]
    forecast = {
        "tokens forward": sum(part.forward.total for part in work),
        "tokens backward": sum(part.backward.total for part in work),
        "FLOPs": sum(part.flops(cell.model.weights) for part in work),
    }
    for name, number in forecast.items():
        assert number == pytest.approx(float(row[name]), rel=TOLERANCE), name
