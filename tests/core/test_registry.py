"""Directions by name: what is registered is found, edited with, and kept by its own code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core import directions
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.directions import Found, Reading, direction, get_direction, to_beat
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.more_directions.style_vector import authentic_pairs
from chameleon_lib.core.sources import of_other_users
from chameleon_lib.core.task import User
from chameleon_lib.errors import UserError
from chameleon_lib.kit.store import ArtifactStore
from tests.core.method import SETTINGS, train_users
from tests.demo.small import HashEmbedder, small_backbone


@pytest.fixture(scope="module")
def backbone() -> HFBackbone:
    return small_backbone()


@pytest.fixture(scope="module")
def users() -> list[User]:
    return train_users()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, directions.Direction]]:
    """A registry that forgets what a test registers."""
    directions.all_directions()
    copy = dict(directions._REGISTRY)
    monkeypatch.setattr(directions, "_REGISTRY", copy)
    yield copy


def method(backbone: HFBackbone, **keep: ArtifactStore) -> Chameleon:
    return Chameleon(backbone, HashEmbedder(), SETTINGS, **keep)


def test_every_direction_is_known_with_what_tables_and_claims_ask_of_it() -> None:
    known = {found.name: found for found in directions.all_directions()}
    assert {found.kind for found in known.values()} == {"paper", "ours", "control", "ceiling"}
    assert to_beat("paper") == ("random", "from_neutral", "shuffled_pairs")
    assert to_beat("fitted") == ("random", "fitted_shuffled")
    assert not known["style_vector"].shown and known["paper"].title == "CHAMELEON (paper)"
    with pytest.raises(UserError, match="no direction 'lda'; choose one of paper"):
        get_direction("lda")


def test_a_direction_of_ones_own_is_an_edit_by_its_name(
    registry: dict[str, directions.Direction], backbone: HFBackbone, users: list[User]
) -> None:
    @direction("last_pair", title="control: the last pair alone", kind="control", beats=("paper",))
    def last_pair(seen: Reading) -> Found:
        difference = seen.p[:, -1] - seen.n[:, -1]  # (G, d)
        return Found(difference / difference.norm(dim=-1, keepdim=True), None)

    model = method(backbone)
    pairs = model.pairs(model.prepare(users))
    edits = model.edits(pairs, ["paper", "last_pair"])
    h_p, h_n = model.activations([p for p in pairs if not p.identical("normalised")][-1:])
    layers = list(edits["paper"].layers)
    assert edits["last_pair"].layers == edits["paper"].layers
    assert edits["last_pair"].alpha_n == 0
    cosine = torch.cosine_similarity(edits["last_pair"].theta_p, (h_p - h_n)[layers, 0], dim=-1)
    assert bool((cosine > 0.999).all())
    assert to_beat("paper")[-1] == "last_pair" and "last_pair" in registry


def test_a_name_is_taken_once_but_a_cell_may_run_again(
    registry: dict[str, directions.Direction],
) -> None:
    def mine(seen: Reading) -> Found:
        return Found(seen.boost(), None)

    for _ in range(2):
        direction("mine", title="mine", kind="ours")(mine)
    with pytest.raises(UserError, match="has a direction 'paper'; choose another id"):
        direction("paper", title="mine", kind="ours")(mine)
    assert registry["mine"].find is mine


@pytest.mark.usefixtures("registry")
def test_what_a_notebook_cell_finds_is_not_kept(
    backbone: HFBackbone, users: list[User], tmp_path: Path
) -> None:
    model = method(backbone, keep=ArtifactStore(tmp_path))
    pairs = model.pairs(model.prepare(users))
    for sign in (1, -1):

        @direction("signed", title="signed", kind="ours")
        def signed(seen: Reading, sign: int = sign) -> Found:
            theta = seen.boost()
            assert theta is not None
            return Found(sign * theta, None)

        found = model.edits(pairs, ["paper", "signed"])
        assert torch.equal(found["signed"].theta_p, sign * found["paper"].theta_p)
    assert len(list((tmp_path / "directions").rglob("*.unit"))) == 1


def test_authentic_minus_neutral_outputs_read_the_history_and_no_gold(
    backbone: HFBackbone, users: list[User]
) -> None:
    def found(some: list[User]) -> tuple[Edit, Edit]:
        model = method(backbone)
        edits = model.edits(model.pairs(model.prepare(some)), ["style_vector", "mean_difference"])
        return edits["style_vector"], edits["mean_difference"]

    style, difference = found(users)
    assert style.alpha_n == 0 and style.layers == difference.layers
    assert not torch.allclose(style.theta_p, difference.theta_p, atol=1e-2)
    other_golds = [
        replace(u, queries=tuple(replace(q, gold="1") for q in u.queries)) for u in users
    ]
    assert torch.equal(found(other_golds)[0].theta_p, style.theta_p)
    model = method(backbone)
    pairs = authentic_pairs(model.case(model.pairs(model.prepare(users))))
    items = {item.text: item.label for user in users for item in user.history}
    assert len(pairs) == 4 * len(users)  # every shown item of every user, once
    assert all(items[pair.query] == pair.answer_p for pair in pairs)


def test_a_kept_run_gives_what_a_run_in_memory_gives_and_computes_it_once(
    backbone: HFBackbone, users: list[User], tmp_path: Path
) -> None:
    names = ["paper", "random", "shuffled_pairs", "fitted", "answer_only", "style_vector"]

    def run(keep: ArtifactStore | None) -> dict[str, Edit]:
        model = Chameleon(backbone, HashEmbedder(), SETTINGS, keep)
        return model.edits(model.pairs(model.prepare(users)), names)

    memory, first = run(None), run(ArtifactStore(tmp_path))
    again = ArtifactStore(tmp_path)
    second = run(again)
    assert again.stats.misses == 0
    for name, edit in memory.items():
        assert edit.layers == first[name].layers == second[name].layers
        assert torch.equal(edit.theta_p, first[name].theta_p)
        assert torch.equal(second[name].theta_n, first[name].theta_n)


def test_gold_answers_are_learned_from_only_where_they_are_given(
    backbone: HFBackbone, users: list[User]
) -> None:
    model = method(backbone)
    prepared = model.prepare(users).users
    pairs = model.pairs(prepared)
    with pytest.raises(UserError, match="fitted_gold learns from gold answers"):
        model.edits(pairs, ["fitted_gold"])
    assert model.edits(pairs, ["fitted_gold"], users=prepared)["fitted_gold"].layers == (0, 1, 2)


def test_fits_on_other_sources_are_edits_by_name(backbone: HFBackbone, users: list[User]) -> None:
    model = method(backbone)
    prepared = model.prepare(users).users
    pairs = model.pairs(prepared)
    case = model.case(pairs, users=prepared)
    names = ("fitted", "fitted_filtered", "fitted_history", "fitted_format")
    edits = [case.edit(name) for name in names]
    assert list(case.fits) == list(names)
    assert len({edit.theta_p.numpy().tobytes() for edit in edits}) == len(names)
    assert to_beat("fitted_history") == ("fitted_format",)
    moved = of_other_users(case.history)
    owners = list(dict.fromkeys(pair.user_id for pair in case.history))
    following = dict(zip(owners, [*owners[1:], owners[0]], strict=True))
    for pair, other in zip(case.history, moved, strict=True):
        theirs = {p.answer_p for p in case.history if p.user_id == following[pair.user_id]}
        assert other.answer_p in theirs and replace(other, answer_p=pair.answer_p) == pair
    assert case.fits["fitted_history"].n_pairs <= len(case.history)
    with pytest.raises(UserError, match="need the users"):
        model.case(pairs).edit("fitted_history")
    with pytest.raises(UserError, match="two users or more"):
        of_other_users([case.history[0]])
