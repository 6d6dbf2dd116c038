"""CCS: the batched reference solver against the plain loop, the span solver against both.

The plain loop takes one layer and one try at a time, with autograd and torch.optim.AdamW: it is how
the published code trains its probes, and the named reference of the batched solvers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chameleon_lib.core.ccs import CCSResult, fit_ccs
from chameleon_lib.core.ccs_solvers import initial_probes
from chameleon_lib.core.settings import EditSettings
from workshop.bench.measure import Clock, Goal, Rounds, Row, run_rounds

_SEED = 0
_TOLERANCE = 1e-4  # two float32 runs of the same optimiser differ by less
_SPEEDUP = Goal(30.0, at_least=True)
_LIMIT = 60.0  # seconds for all layers of a model of 7 billion parameters
_IN_TIME = Goal(1.0, at_least=False)
_ANSWERS = "outputs/demo/tables/serving_g_solvers.csv"
_LOOP, _REFERENCE = "plain loop, one probe", "reference"
_EQUAL, _END = "span to the reference's loss", "span to its own end"


@dataclass(frozen=True)
class CCSWork:
    """Sizes; the defaults are those of a 7-billion-parameter model."""

    layers: int = 32
    pairs: int = 300
    d: int = 4096
    tries: int = 10
    epochs: int = 1000
    rounds: int = 3


def plain_probe(
    h_n: Tensor,
    h_p: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    epochs: int,
    squared: bool = True,
) -> float:
    """Final loss of one probe, from activations ``(K, d)`` and a start ``(d,)`` and scalar.

    ``squared``: whether the confidence term is squared (A8).
    """
    probe = torch.nn.Linear(h_n.shape[-1], 1)
    with torch.no_grad():
        probe.weight.copy_(weight)
        probe.bias.copy_(bias)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        _plain_loss(probe, h_n, h_p, squared).backward()
        optimizer.step()
    with torch.no_grad():
        return float(_plain_loss(probe, h_n, h_p, squared))


def _plain_loss(probe: torch.nn.Module, h_n: Tensor, h_p: Tensor, squared: bool) -> Tensor:
    g_n, g_p = torch.sigmoid(probe(h_n))[:, 0], torch.sigmoid(probe(h_p))[:, 0]
    confidence = torch.minimum(g_n, g_p)
    return ((g_n - (1 - g_p)) ** 2 + (confidence**2 if squared else confidence)).mean()


def activations(work: CCSWork) -> tuple[Tensor, Tensor]:
    """Made-up activations ``h_n, h_p``, each ``(layers, pairs, d)``.

    A mean common to both classes, a weak offset between them, and noise. The scale is small, as
    that of real MLP outputs is: AdamW then ends at a loss above 0 and there is something to
    compare (at unit scale and 2 K < d every probe separates the pairs).
    """
    generator = torch.Generator().manual_seed(_SEED)
    shape = (work.layers, work.pairs, work.d)
    mean = 0.02 * torch.randn(work.layers, 1, work.d, generator=generator)
    offset = torch.randn(work.layers, 1, work.d, generator=generator)
    offset = 0.05 * torch.nn.functional.normalize(offset, dim=-1)
    h_n = torch.randn(shape, generator=generator).mul_(0.02).add_(mean - offset / 2)
    h_p = torch.randn(shape, generator=generator).mul_(0.02).add_(mean + offset / 2)
    return h_n, h_p


def measure(work: CCSWork, clock: Clock) -> list[Row]:
    """Seven rows: reference against loop; span to equal loss and to its own end against both, and
    against the clock."""
    h_n, h_p = activations(work)
    base = EditSettings().with_(ccs_tries=work.tries, ccs_epochs=work.epochs)
    reference = base.with_(ccs_solver="reference")
    span = base.with_(ccs_solver="span")
    weights, biases = initial_probes(work.tries, work.d, _SEED)

    def loop(number: int, epochs: int = work.epochs) -> float:
        layer, attempt = probe_of(work, number)
        start = weights[attempt], biases[attempt, 0]
        return plain_probe(h_n[layer], h_p[layer], *start, epochs=epochs)

    targets: list[Tensor] = []

    def run_reference(_: int) -> CCSResult:
        fit = fit_ccs(h_n, h_p, reference, _SEED)
        targets.append(fit.loss)
        return fit

    def run_to_equal(_: int) -> CCSResult:
        # The first round runs the reference before; later rounds give the same losses again.
        return fit_ccs(h_n, h_p, span, _SEED, stop_at=targets[0])

    few = min(work.epochs, 3)
    rounds = run_rounds(
        "ccs",
        {
            _LOOP: loop,
            _REFERENCE: run_reference,
            _EQUAL: run_to_equal,
            _END: lambda _: fit_ccs(h_n, h_p, span, _SEED),
        },
        work.rounds,
        clock,
        warm_up=[
            lambda: loop(0, few),
            lambda: fit_ccs(h_n[:1], h_p[:1], reference.with_(ccs_epochs=few), _SEED),
            lambda: fit_ccs(h_n[:1], h_p[:1], span, _SEED),
        ],
    )
    return _rows(work, rounds)


def probe_of(work: CCSWork, number: int) -> tuple[int, int]:
    """Layer and try that the plain loop runs in a round; other rounds check other probes."""
    return number % work.layers, number % work.tries


def _rows(work: CCSWork, rounds: Rounds) -> list[Row]:
    sizes = (
        f"{work.layers} layers x {work.pairs} pairs x {work.d} x {work.tries} tries, "
        f"{work.epochs} epochs"
    )
    probes = work.layers * work.tries
    scaled = (
        f"plain loop with autograd and AdamW: measured on 1 layer x 1 try x {work.epochs} epochs, "
        f"scaled x {probes}"
    )
    batched = rounds.results[_REFERENCE]
    gaps = []
    for number, loss in enumerate(rounds.results[_LOOP]):
        layer, attempt = probe_of(work, number)
        gaps.append(abs(float(batched[number].losses[layer, attempt]) - loss))
    equal = max(gaps) <= _TOLERANCE
    rows = [
        Row(
            "CCS, reference solver: speed-up",
            sizes,
            scaled,
            rounds.ratio(_LOOP, _REFERENCE, probes),
            None,
            equal,
            f"losses of the {len(gaps)} measured probes differ by at most {max(gaps):.1e}",
        )
    ]
    theirs = batched[-1].loss  # (layers,)
    # Equal loss is the fair comparison and has the goal: at its own end the span solver is lower.
    for variant, what, goal in (
        (_EQUAL, "CCS, span solver: speed-up to a loss no worse", _SPEEDUP),
        (_END, "CCS, span solver run to its own end: speed-up", None),
    ):
        ours = rounds.results[variant][-1].loss
        no_worse = bool((ours <= theirs + _TOLERANCE).all())
        losses = (
            f"{'no' if no_worse else 'some'} layer ends worse; best loss per layer, "
            f"mean [min, max], span {_spread(ours)}, reference {_spread(theirs)}"
        )
        batch = "reference solver, all layers and tries batched"
        against_batch = rounds.ratio(_REFERENCE, variant)
        rows.append(Row(what, sizes, batch, against_batch, goal, no_worse, losses))
        against_loop = rounds.ratio(_LOOP, variant, probes)
        same = no_worse and equal
        rows.append(Row(what, sizes, scaled, against_loop, goal, same, "by the rows above"))
        taken = rounds.share(variant, _LIMIT)
        rows.append(
            Row(
                what.replace("speed-up", f"share of {_LIMIT:.0f} s"),
                sizes,
                f"{_LIMIT:.0f} s",
                taken,
                _IN_TIME,
                None,
                f"{taken.median * _LIMIT:.1f} s in all (median); layer order and edited answers "
                f"under both solvers on the embedded models: {_ANSWERS}",
            )
        )
    return rows


def _spread(loss: Tensor) -> str:
    return f"{float(loss.mean()):.4f} [{float(loss.min()):.4f}, {float(loss.max()):.4f}]"
