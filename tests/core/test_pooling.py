from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from chameleon_lib.core import directions as directions_module
from chameleon_lib.core.backbone import Unkept
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.directions import find_directions
from chameleon_lib.core.pairs import PreferencePair, drawn, pooled
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import root
from tests.core.method import SETTINGS, train_users
from tests.demo.small import HashEmbedder, small_backbone

PAIRS = [
    PreferencePair(
        f"u{at % 7}", f"q{at}", f"text {at}", (), "5", "5" if at % 4 == 0 else "4", "LaMP_3"
    )
    for at in range(40)
]


def capped(limit: int | None, **changes: Any) -> EditSettings:
    return SETTINGS.with_(pairs_k_max=limit, **changes)


def test_a_draw_keeps_order_and_depends_on_seed_and_pair_alone() -> None:
    chosen = drawn(PAIRS, capped(10))
    assert len(chosen) == 10 and chosen == [pair for pair in PAIRS if pair in chosen]
    assert chosen == drawn(PAIRS, capped(10)) != drawn(PAIRS, capped(10, seed=1))
    assert sorted(p.query_id for p in drawn(PAIRS[::-1], capped(10))) == sorted(
        p.query_id for p in chosen
    )
    assert set(chosen) < set(drawn(PAIRS, capped(11)))
    assert drawn(PAIRS, capped(None)) == drawn(PAIRS, capped(40)) == PAIRS
    # The draw of a draw and more is the draw of all: no user's pairs are favoured by their place.
    assert drawn([*drawn(PAIRS[:20], capped(10)), *PAIRS[20:]], capped(10)) == chosen


def test_a_pool_counts_what_agreed_and_names_whose_pairs_are_in_it() -> None:
    whole = pooled(PAIRS, capped(None))
    assert (len(whole.different), len(whole.identical), whole.n_identical) == (30, 10, 10)
    assert whole.users == tuple(f"u{at}" for at in range(7))
    part = pooled(PAIRS, capped(2))
    assert (len(part.different), len(part.identical), part.n_identical) == (2, 2, 10)
    assert set(part.users) == {pair.user_id for pair in (*part.different, *part.identical)}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers_rule": "all", "edit_sign_gate": "class_mean"},
        {"direction_personal": "random", "direction_neutral": "random"},
    ],
)
def test_directions_found_layer_by_layer_are_those_of_the_whole(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    h_p, h_n = torch.randn(2, 5, 12, 16, generator=generator) + 0.3
    settings = SETTINGS.with_(**changes)
    whole = find_directions("paper", h_p, h_n, settings, 0)
    monkeypatch.setattr(directions_module, "LAYER_BYTES", 2 * h_p[0].numel() * 4)
    found = find_directions("paper", h_p, h_n, settings, 0)
    for name in ("theta_p", "theta_n", "ccs_loss", "gate_p", "gate_n"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name), equal_nan=True)
    assert found.diagnostics.keys() == whole.diagnostics.keys()
    for name, value in whole.diagnostics.items():
        torch.testing.assert_close(found.diagnostics[name], value, equal_nan=True)
    assert found.theta_p.dtype == whole.theta_p.dtype and found.gate_p.dtype == torch.bool


def test_readings_made_in_parts_are_those_made_at_once() -> None:
    backbone = small_backbone()
    user = train_users(n=1)[0]
    pairs = [replace(pair, items=user.history[: 1 + at % 3]) for at, pair in enumerate(PAIRS[:7])]
    at_once, in_parts = (
        Chameleon(backbone, HashEmbedder(), SETTINGS, Unkept(most)).activations(pairs)
        for most in (64, 3)
    )
    for one, other in zip(at_once, in_parts, strict=True):
        assert one.shape == (3, 7, 24) and one.is_contiguous()
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    nothing, _ = Chameleon(backbone, HashEmbedder(), SETTINGS).activations([])
    assert nothing.shape == (3, 0, 24)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
def test_ten_times_the_users_take_the_same_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.core.resident"],
        cwd=root(), capture_output=True, text=True, timeout=300, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = json.loads(done.stdout)
    growth = found["many"] - found["few"]
    assert growth < 8, found  # MiB; 300 more pairs of this model are 0.2
    assert found["resident"] + found["many"] < 1.2 * (found["resident"] + found["few"])
    assert found["at_once"] > found["many"] + 8, found  # so the measurement sees what parts save


class Counting(HashEmbedder):
    """Remembers how many texts came at once."""

    largest = 0

    def encode(self, texts: Sequence[str]) -> Any:
        self.largest = max(self.largest, len(texts))
        return super().encode(texts)


def test_a_fit_holds_the_texts_of_some_users_at_a_time_and_gives_the_same_edit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The number of texts in one call is what tokens, prefixes and embeddings grow with."""
    backbone, users = small_backbone(), train_users(n=9)
    asked: list[int] = []
    generate, activations = backbone.generate, backbone.activations

    def counted(prompts: Sequence[str], **options: Any) -> list[str]:
        asked.append(len(prompts))
        return generate(prompts, **options)

    def read(contexts: Sequence[str], answers: Sequence[str], **options: Any) -> torch.Tensor:
        asked.append(len(contexts))
        return activations(contexts, answers, **options)

    whole = Chameleon(backbone, HashEmbedder(), SETTINGS).fit(users)
    monkeypatch.setattr(backbone, "generate", counted)
    monkeypatch.setattr(backbone, "activations", read)
    embedder = Counting()
    made = Chameleon(backbone, embedder, SETTINGS, Unkept(most=2)).fit(users)
    assert max(asked) == 8 and len(asked) >= 15  # two users with two queries in two roles
    assert embedder.largest <= 2 * 7
    assert made.users == whole.users and made.n_pairs == whole.n_pairs
    assert made.edit.layers == whole.edit.layers
    torch.testing.assert_close(made.edit.theta_p, whole.edit.theta_p, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.edit.theta_n, whole.edit.theta_n, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("method", ["paper", "fitted"])
def test_a_bound_on_pairs_holds_for_both_methods(method: str) -> None:
    settings = capped(3, theta_method=method)
    made = Chameleon(small_backbone(), HashEmbedder(), settings).fit(train_users())
    assert made.n_pairs == 3 and made.settings.pairs_k_max == 3
    assert 1 <= len(made.users) < 6 or made.n_identical
    if made.fitted is not None:
        assert made.fitted.n_pairs + made.fitted.n_agreed + made.fitted.n_held_out <= 6


def test_a_bound_below_the_least_number_of_pairs_is_a_contradiction() -> None:
    with pytest.raises(UserError, match="pairs_k_max 3 is below pairs_k_min 32"):
        EditSettings(pairs_k_max=3)
