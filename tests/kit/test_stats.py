"""Estimates against brute force, McNemar against hand values, and a verdict rule that says no."""

from __future__ import annotations

import numpy as np
import pytest

from chameleon_lib.kit.stats import (
    METRICS,
    STATUSES,
    Estimate,
    NoUsersError,
    bootstrap_mean,
    bootstrap_metric,
    confusion_by_user,
    effect_word,
    mcnemar,
    own_claim,
    seed_sd,
    sums_by_user,
    verdict,
)

LABELS = ("a", "b", "c")


def estimate(low: float, high: float, n: int = 200) -> Estimate:
    return Estimate((low + high) / 2, low, high, n, 3)


def normal(shift: float, n: int = 300, seeds: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, (seeds, n))


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    found = bootstrap_mean(values)
    half = 1.96 * values.std() / np.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)
    assert (found.n, found.seeds) == (400, 1)


def test_pairing_removes_what_both_arms_share() -> None:
    common = np.random.default_rng(2).normal(0, 10, 200)
    noise = np.random.default_rng(3).normal(0, 0.1, 200)
    found = bootstrap_mean(common + 0.5 + noise, common)
    assert 0.45 < found.low < found.high < 0.55


def test_every_seed_sees_the_same_users() -> None:
    """Opposite seeds cancel in every resample only if their users are resampled together."""
    row = np.random.default_rng(4).normal(0, 1, 50)
    found = bootstrap_mean(np.stack([row, -row]))
    assert found.high - found.low < 1e-12
    assert found.seeds == 2


def test_a_fixed_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = normal(0.0)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values)


@pytest.mark.parametrize("bad", [[], [np.nan, 1.0], np.zeros((2, 2, 2))])
def test_empty_missing_or_misshapen_scores_are_refused(bad: object) -> None:
    with pytest.raises(ValueError):
        bootstrap_mean(np.asarray(bad))


def test_arms_with_different_users_are_refused() -> None:
    with pytest.raises(ValueError, match="same users"):
        bootstrap_mean(np.zeros(3), np.zeros(4))


def test_macro_f1_by_counts_matches_the_hand_values_of_the_evaluator() -> None:
    tags = tuple(f"t{i}" for i in range(13)) + ("comedy", "romance")
    golds = ["comedy", "comedy", "t0", "romance"]
    preds = ["comedy", "Comedy", "t0.", "romance"]
    counts = confusion_by_user(golds, preds, tags)
    assert METRICS["macro_f1"](counts.sum(axis=0)) == pytest.approx((2 / 3 + 1) / 15)


def test_rmse_is_taken_over_resampled_users_not_averaged_over_them() -> None:
    squared = np.array([0.0, 0.0, 9.0, 1.0])
    found = bootstrap_metric("rmse", sums_by_user(squared))
    assert found.value == pytest.approx(np.sqrt(2.5))
    assert found.low == pytest.approx(0.0, abs=0.51)
    assert found.high <= 3.0


def test_bootstrap_metric_agrees_with_a_plain_loop() -> None:
    rng = np.random.default_rng(7)
    golds = list(rng.choice(LABELS, 60))
    preds = [g if rng.random() < 0.6 else str(rng.choice(LABELS)) for g in golds]
    users = [f"u{i // 2}" for i in range(60)]
    sums = confusion_by_user(golds, preds, LABELS, users)
    assert sums.shape == (30, 9)
    found = bootstrap_metric("macro_f1", sums, n_boot=400, seed=3)
    index = np.random.default_rng(3).integers(0, 30, (400, 30))
    plain = [float(METRICS["macro_f1"](sums[row].sum(axis=0))) for row in index]
    assert found.low == pytest.approx(np.quantile(plain, 0.025))
    assert found.high == pytest.approx(np.quantile(plain, 0.975))


def test_a_gold_answer_outside_the_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="R21"):
        confusion_by_user(["z"], ["a"], LABELS)


def test_mcnemar_is_exact() -> None:
    a = [1] * 8 + [0] * 2 + [1] * 5
    b = [0] * 8 + [1] * 2 + [1] * 5
    found = mcnemar(a, b)
    assert (found.b, found.c) == (8, 2)
    assert found.p == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar([1, 0], [1, 0]).p == 1.0
    assert 0 < mcnemar([1] * 3000, [0] * 3000).p + 1e-300 < 1e-200


def test_the_spread_over_seeds_needs_two_of_them() -> None:
    assert seed_sd([[0.0, 2.0], [2.0, 4.0]]) == pytest.approx(np.sqrt(2))
    assert np.isnan(seed_sd([1.0, 2.0]))


@pytest.mark.parametrize(
    ("effect", "margins", "word"),
    [
        (estimate(0.1, 0.3), [estimate(0.05, 0.2), estimate(0.01, 0.2)], "reproduced"),
        (estimate(0.1, 0.3), [estimate(0.05, 0.2), estimate(-0.01, 0.2)], "direction only"),
        (estimate(0.1, 0.3), [], "direction only"),
        (estimate(-0.1, 0.3), [estimate(0.1, 0.2)], "not reproduced"),
        (estimate(0.0, 0.3), [estimate(0.1, 0.2)], "not reproduced"),
        (estimate(-0.3, -0.1), [estimate(0.1, 0.2)], "opposite"),
        (estimate(0.1, 0.3, n=99), [estimate(0.1, 0.2, n=99)], "too few users"),
        (None, [], "not run at this scale"),
    ],
)
def test_the_verdict_rule(effect: Estimate | None, margins: list[Estimate], word: str) -> None:
    assert verdict(effect, margins) == word


def test_errors_and_claimed_losses_turn_the_effect_round() -> None:
    fall, margin = estimate(-0.3, -0.1), estimate(-0.2, -0.05)
    assert verdict(fall, [margin], higher_is_better=False) == "reproduced"
    assert verdict(fall, [margin], paper_sign=-1) == "reproduced"
    assert verdict(fall, [margin], higher_is_better=False, paper_sign=-1) == "opposite"
    with pytest.raises(ValueError):
        verdict(fall, [margin], paper_sign=0)


def test_effect_and_controls_must_share_their_users() -> None:
    with pytest.raises(ValueError, match="same users"):
        verdict(estimate(0.1, 0.2), [estimate(0.1, 0.2, n=150)])


def test_judging_real_arrays_gives_the_positive_word_only_to_a_real_effect() -> None:
    baseline, real = normal(0.0, seed=1), normal(0.5, seed=2)
    random, neutral = normal(0.0, seeds=5, seed=3), normal(0.5, seed=4)
    gain = bootstrap_mean(real, baseline)
    assert verdict(gain, [bootstrap_mean(real, random)]) == "reproduced"
    assert verdict(gain, [bootstrap_mean(real, neutral)]) == "direction only"
    loss = bootstrap_mean(-real, baseline)
    assert verdict(loss, [bootstrap_mean(-real, random)]) == "opposite"


def test_a_null_effect_is_rarely_called_reproduced() -> None:
    words = [
        verdict(
            bootstrap_mean(ours, normal(0.0, 120, seed=3 * i + 1), n_boot=500),
            [bootstrap_mean(ours, normal(0.0, 120, seed=3 * i + 2), n_boot=500)],
        )
        for i in range(40)
        for ours in (normal(0.0, 120, seed=3 * i),)
    ]
    assert words.count("not reproduced") >= 34
    assert words.count("reproduced") <= 2


def test_an_interval_gets_a_word_only_from_enough_users() -> None:
    assert effect_word(0.1, 0.2, 100) == effect_word(-0.2, -0.1, 100, higher_is_better=False)
    assert effect_word(0.1, 0.2, 100) == "helps"
    assert effect_word(-0.2, -0.1, 100) == effect_word(0.1, 0.2, 100, higher_is_better=False)
    assert effect_word(-0.2, -0.1, 100) == "hurts"
    assert effect_word(0.0, 0.1, 100) == "no effect shown"
    assert effect_word(0.1, 0.2, 99) == effect_word(0.0, 0.1, 99) == ""


def test_an_estimate_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError):
        Estimate(float("nan"), 0.0, 1.0, 10, 1)
    with pytest.raises(ValueError):
        Estimate(0.5, 1.0, 0.0, 10, 1)


def test_a_claim_of_the_kit_itself_holds_or_does_not_and_is_never_reproduced() -> None:
    words = {status: own_claim(status) for status in STATUSES}
    assert words.pop("reproduced") == "holds"
    assert words.pop("not reproduced") == "does not hold"
    assert all(word == status for status, word in words.items())
    assert {"holds", "does not hold", "opposite", "too few users"} <= set(words)


def test_equal_seeds_leave_no_noise_that_a_verdict_could_hang_on() -> None:
    rates = np.random.default_rng(0).random(60)
    sums = np.stack([sums_by_user(rates * part) for part in (0.1, 0.1, 0.1)])
    found = bootstrap_metric("mean", sums, sums[:1], n_boot=200)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert str(found.value) == "0.0"  # and no negative zero
    tripled = sums * np.array([1.0, 2.0, 3.0])[:, None, None]
    unequal = bootstrap_metric("mean", tripled, seed_weights=(np.array([1, 0, 0]), None))
    assert unequal.value == pytest.approx(bootstrap_metric("mean", sums[:1]).value)


def test_users_without_a_value_are_neither_counted_nor_resampled() -> None:
    values = np.random.default_rng(0).random(8)
    gaps = np.arange(8) < 3
    sums = np.stack([np.where(gaps, 0.0, values), np.where(gaps, 0.0, 1.0)], axis=-1)
    for metric in ("mean", "rmse"):
        found = bootstrap_metric(metric, sums, n_boot=5_000)
        assert found == bootstrap_metric(metric, sums[~gaps], n_boot=5_000)
        assert found.n == 5
    assert bootstrap_metric("mean", sums, sums).n == 5


def test_a_user_with_a_value_in_one_seed_alone_is_counted() -> None:
    both = np.stack([np.ones(3), np.ones(3)], axis=-1)
    seeds = np.stack([both, both * np.array([0.0, 1.0, 1.0])[:, None]])
    # Resamples of the first user alone have no value in the second seed and say nothing.
    found = bootstrap_metric("mean", seeds)
    assert (found.value, found.low, found.high, found.n) == (1.0, 1.0, 1.0, 3)


def test_nothing_is_estimated_where_no_user_of_a_seed_has_a_value() -> None:
    some = np.ones((2, 2))
    for nobody in (np.zeros((2, 2)), np.stack([some, np.zeros((2, 2))])):
        with pytest.raises(NoUsersError):
            bootstrap_metric("mean", nobody)
    with pytest.raises(NoUsersError):
        bootstrap_metric("mean", some, np.zeros((2, 2)))
