from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.fitting import PlainPrompts, contrasts_from_pairs
from chameleon_lib.core.pairs import PreferencePair, PreparedUser, keep_different
from chameleon_lib.kit.records import decode, encode
from chameleon_lib.studies.arms import Group, build_draw
from chameleon_lib.studies.data import load_task_data
from chameleon_lib.studies.study import Study
from tests.studies.small import SETTINGS, small_profile, study_in, use_small_models


@dataclass(frozen=True)
class Drawn:
    """A study with one draw in its store, and every list of prompts that was read for it."""

    study: Study
    users: list[PreparedUser]
    pairs: list[PreferencePair]
    read: list[list[str]]

    def again(self) -> Any:
        return build_draw(self.study, Group(0, self.users, self.pairs), 1)

    def records(self) -> dict[Path, bytes]:
        """The stored fits, without the seconds they took."""
        found = {}
        for path in (self.study.store.root / "fit").rglob("*.unit"):
            value = decode(path.read_bytes())
            assert value["json"].pop("seconds") > 0
            found[path] = encode(value)
        return found


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drawn]:
    read: list[list[str]] = []
    prepare = HFBackbone.prepare

    def counting(self: HFBackbone, prompts: Sequence[str], **rest: Any) -> Any:
        read.append(list(prompts))
        return prepare(self, prompts, **rest)

    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        patch.setattr(HFBackbone, "prepare", counting)
        study = study_in(tmp_path_factory.mktemp("units"))
        users, _ = study.prepare(load_task_data(small_profile(), "LaMP_3").train)
        found = Drawn(study, users, study.pairs(users), read)
        found.again()
        yield found


def own_contrasts(drawn: Drawn) -> list[Any]:
    kept, identical = keep_different(drawn.pairs, SETTINGS)
    return contrasts_from_pairs("LaMP_3", kept, identical, SETTINGS)


def test_the_fits_of_a_draw_read_their_prompts_once(drawn: Drawn) -> None:
    [texts] = drawn.read
    assert set(texts) == {contrast.prompt for contrast in own_contrasts(drawn)}
    assert len(texts) == len(drawn.pairs) and len(drawn.records()) == 3


def test_nothing_is_read_where_every_fit_is_in_the_store(drawn: Drawn) -> None:
    before = len(drawn.read)
    drawn.again()
    assert len(drawn.read) == before


def test_a_fit_that_a_killed_run_left_out_comes_out_the_same_to_the_last_bit(
    drawn: Drawn,
) -> None:
    before = drawn.records()
    for lost in before:
        lost.unlink()
        drawn.again()
        assert drawn.records() == before
        assert drawn.read[-1] == drawn.read[0]  # all prompts, whatever fit was missing


def test_a_fit_alone_is_that_of_the_draw(drawn: Drawn) -> None:
    study, misses = drawn.study, drawn.study.store.stats.misses
    study.preference_fit(own_contrasts(drawn), seed=0)
    assert study.store.stats.misses == misses


def test_a_fit_takes_no_prompts_but_its_own(drawn: Drawn) -> None:
    study, contrasts = drawn.study, own_contrasts(drawn)
    more = PlainPrompts(study.backbone, [*(c.prompt for c in contrasts), "Another prompt."])
    with pytest.raises(ValueError, match="the prompts are not those of the contrasts"):
        study.preference_fit(contrasts, more, 99)
