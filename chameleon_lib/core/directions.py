"""Directions of all layers by name: the registry, the paper's and its controls, the edited layers.

A direction is registered by :func:`direction`, in a file of ``more_directions`` or in a notebook
cell; every study, table and claim then finds it here.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from chameleon_lib.core import more_directions
from chameleon_lib.core.ccs import check_pairs, fit_ccs, shuffle_pairs
from chameleon_lib.core.edit import Edit, check_option
from chameleon_lib.core.estimators import (
    CCS_NUMBERS,
    ccs_diagnostics,
    geometry,
    mean_difference,
    neutral_direction,
    personal_direction,
    unit,
)
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError

Kind = Literal["paper", "ours", "control", "ceiling"]
LAYER_BYTES = 64 << 20  # activations of one kind that the paper's directions are found from at once
_TENSORS = ("theta_p", "theta_n", "ccs_loss", "gate_p", "gate_n")


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions of every layer; layers x users where users were batched."""

    theta_p: Tensor  # ``(L, d)`` or ``(U, L, d)``, unit vectors (zeros where the part is left out)
    theta_n: Tensor  # same shape
    # ``(L,)`` or ``(U, L)``, after ``layers_loss_stat``; NaN where CCS was not fitted
    ccs_loss: Tensor
    alpha_p: float  # boost strength these directions ask for (0 for N only)
    alpha_n: float  # removal strength likewise
    gate_p: Tensor  # bool like ``ccs_loss``: the boost stays (A9); all True without a sign gate
    gate_n: Tensor  # same for the removal
    diagnostics: dict[str, Tensor] = field(default_factory=dict)  # named tensors like ``ccs_loss``

    def choose_layers(self, settings: EditSettings) -> tuple[int, ...]:
        """The edited layers by the settings' rule (A5)."""
        return choose_layers(self.ccs_loss, settings.layers_rule, settings.layers_k)

    def to_edit(self, settings: EditSettings, layers: tuple[int, ...] | None = None) -> Edit:
        """The edit at ``layers``, by default those the settings' rule picks."""
        layers = self.choose_layers(settings) if layers is None else layers
        at = list(layers)
        return Edit.of(
            settings,
            layers,
            self.theta_p[at],
            self.theta_n[at],
            alpha_p=self.alpha_p,
            alpha_n=self.alpha_n,
            gate_p=self.gate_p[at],
            gate_n=self.gate_n[at],
        )

    def record(self) -> tuple[list[float], dict[str, Tensor]]:
        """JSON values and tensors by name, for :meth:`from_record`."""
        tensors = {f"diagnostics/{name}": value for name, value in self.diagnostics.items()}
        return [self.alpha_p, self.alpha_n], tensors | {n: getattr(self, n) for n in _TENSORS}

    @classmethod
    def from_record(cls, values: Sequence[float], tensors: Mapping[str, Any]) -> Directions:
        """The directions of a :meth:`record`; tensors may come back as arrays."""
        found = {name: torch.as_tensor(value) for name, value in tensors.items()}
        gates = {name: found.pop(name).bool() for name in ("gate_p", "gate_n")}
        own = {name: found.pop(name) for name in ("theta_p", "theta_n", "ccs_loss")}
        logged = {name.removeprefix("diagnostics/"): value for name, value in found.items()}
        return cls(**own, **gates, alpha_p=values[0], alpha_n=values[1], diagnostics=logged)

    def rows(self) -> list[dict[str, float]]:
        """One record of diagnostics per layer."""
        if self.ccs_loss.dim() != 1:
            raise UserError("These directions are batched over users; pick one user first.")
        return [
            {"layer": layer}
            | {name: float(value[layer]) for name, value in self.diagnostics.items()}
            for layer in range(len(self.ccs_loss))
        ]


class Found(NamedTuple):
    """What a direction finds in a :class:`Reading`."""

    theta_p: Tensor | None  # ``(G, d)`` unit vectors to strengthen; None leaves the boost out
    theta_n: Tensor | None  # ``(G, d)`` unit vectors to remove; None leaves the removal out
    boost: bool = True  # False gives ``theta_p`` a strength of 0
    remove: bool = True  # False gives ``theta_n`` a strength of 0


@dataclass(eq=False)
class Reading:
    """Activations of preference pairs, as a direction sees them."""

    p: Tensor  # personalised activations ``(G, K, d)``; a group is a layer, or a layer of a user
    n: Tensor  # neutral ones, same shape and row order
    mask: Tensor  # bool ``(G, K)``, True for real pairs
    settings: EditSettings  # settings of the main arm
    seed: int  # of what is drawn, and of the restarts
    # The paper's directions from the same pairs, seed and settings, if they are known: what CCS
    # found for them is not searched for again
    main: Directions | None = None

    def personal(self, name: str) -> Tensor | None:
        """theta^P ``(G, d)`` by an estimator of ``direction_personal``; None for ``none``."""
        if name == "none":
            return None
        return personal_direction(name, self.p, self.n, self.seed, self.mask)

    def neutral(self, name: str) -> Tensor | None:
        """theta^N ``(G, d)`` by an estimator of ``direction_neutral``; None for ``none``."""
        if name == "none":
            return None
        if name == "ccs":
            return self.ccs[0]
        return neutral_direction(name, self.n, self.p, self.settings, self.seed, self.mask)

    def boost(self) -> Tensor | None:
        """theta^P as the settings have it."""
        return self.personal(self.settings.direction_personal)

    def removal(self) -> Tensor | None:
        """theta^N as the settings have it."""
        return self.neutral(self.settings.direction_neutral)

    @cached_property
    def ccs(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """theta^N by CCS ``(G, d)``, the loss ``(G,)`` that ranks layers, what the fit tells."""
        if self.main is not None and self.settings.direction_neutral == "ccs":
            told = {
                name: value.reshape(-1)
                for name, value in self.main.diagnostics.items()
                if name in CCS_NUMBERS
            }
            d = self.p.shape[-1]
            return self.main.theta_n.reshape(-1, d), self.main.ccs_loss.reshape(-1), told
        ccs = fit_ccs(self.n, self.p, self.settings, self.seed, self.mask)
        best, ranking = self.settings.layers_loss_stat == "best_try", ccs
        if self.settings.ccs_solver == "span" and self.settings.layers_rule != "all":
            # The span solver ends in another minimum at the least noise; see `ccs_solvers`.
            reference = self.settings.with_(ccs_solver="reference")
            ranking = fit_ccs(self.n, self.p, reference, self.seed, self.mask)
        loss = ranking.loss if best else ranking.losses.mean(1)
        return unit(ccs.theta, "ccs"), loss, ccs_diagnostics(ccs)


@dataclass(frozen=True)
class Direction:
    """A way to find directions, by name."""

    name: str  # its id, in arms and store keys
    title: str  # its row in tables
    # ``paper``; ``ours``, beyond the paper; ``control``; or ``ceiling``, which has seen the gold
    # answers of train users
    kind: Kind
    # From a :class:`Reading` to :class:`Found`; with ``of`` "pairs" from a ``chameleon.Case`` to an
    # edit
    find: Callable[[Any], Any]
    # The edits (``paper``, ``fitted``) that must beat this control before a claim holds
    beats: tuple[str, ...] = ()
    of: Literal["activations", "pairs"] = "activations"  # what ``find`` is given
    # Whether Table 1 and the studies beside it run it; by name it can always be had
    shown: bool = True
    # Changes ``(h_n, h_p, seed)`` to other ``(h_n, h_p)`` before ``find`` sees them
    rows: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None = None


_REGISTRY: dict[str, Direction] = {}


def direction(
    name: str, *, title: str, kind: Kind, beats: Sequence[str] = (), **how: Any
) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Registers a function as a direction; the arguments are those of :class:`Direction`.

    Raises:
        UserError: Another module has a direction of this name.
    """

    def register(find: Callable[[Any], Any]) -> Callable[[Any], Any]:
        there = _REGISTRY.get(name)
        # The same cell may run again, and the same file be read again.
        if there is not None and there.find.__module__ != find.__module__:
            raise UserError(f"{there.find.__module__} has a direction {name!r}; choose another id.")
        _REGISTRY[name] = Direction(name, title, kind, find, tuple(beats), **how)
        return find

    return register


def all_directions(kind: Kind | None = None) -> list[Direction]:
    """Every registered direction, or those of a kind, in the order of registration."""
    for module in pkgutil.iter_modules(more_directions.__path__):
        import_module(f"{more_directions.__name__}.{module.name}")
    return [found for found in _REGISTRY.values() if kind is None or found.kind == kind]


def get_direction(name: str) -> Direction:
    """The direction of this name, or a UserError that lists those there are."""
    known = {found.name: found for found in all_directions()}
    if name not in known:
        raise UserError(f"There is no direction {name!r}; choose one of {', '.join(known)}.")
    return known[name]


def to_beat(edit: str) -> tuple[str, ...]:
    """The controls that an edit (``paper``, ``fitted``) must beat before a claim holds."""
    return tuple(found.name for found in all_directions() if edit in found.beats)


@direction("paper", title="CHAMELEON (paper)", kind="paper")
def _paper(seen: Reading) -> Found:
    return Found(seen.boost(), seen.removal())


@direction(
    "random", title="control: random directions", kind="control", beats=("paper", "fitted")
)
def _random(seen: Reading) -> Found:
    return Found(seen.personal("random"), seen.neutral("random"))


@direction(
    "from_neutral", title="control: θP from neutral outputs", kind="control", beats=("paper",)
)
def _from_neutral(seen: Reading) -> Found:
    return Found(seen.personal("svd_n"), seen.removal())


@direction("mean_difference", title="control: mean difference", kind="control")
def _mean_difference(seen: Reading) -> Found:
    return Found(seen.personal("mean_diff"), None)


@direction(
    "shuffled_pairs",
    title="control: shuffled pairs",
    kind="control",
    beats=("paper",),
    rows=shuffle_pairs,
)
def _shuffled_pairs(seen: Reading) -> Found:
    return _paper(seen)


@direction("p_only", title="control: P only", kind="control")
def _p_only(seen: Reading) -> Found:
    return Found(seen.boost(), seen.removal(), remove=False)


@direction("n_only", title="control: N only", kind="control")
def _n_only(seen: Reading) -> Found:
    return Found(seen.boost(), seen.removal(), boost=False)


@direction("svd_diff", title="control: SVD of differences", kind="control")
def _svd_diff(seen: Reading) -> Found:
    return Found(seen.personal("svd_diff"), seen.removal())


@direction("logistic", title="control: logistic regression for θN", kind="control")
def _logistic(seen: Reading) -> Found:
    return Found(seen.boost(), seen.neutral("logistic"))


def find_directions(
    name: str,
    h_p: Tensor,
    h_n: Tensor,
    settings: EditSettings,
    seed: int | None = None,
    mask: Tensor | None = None,
    main: Directions | None = None,
) -> Directions:
    """theta^P, theta^N, CCS loss and diagnostics of every layer (and user).

    Controls belong at the layers of the main arm: ``found.to_edit(settings, layers=main_layers)``.

    Args:
        name: A registered direction of activations.
        h_p: ``(L, K, d)`` or ``(U, L, K, d)``.
        h_n: Same shape and row order.
        seed: Of draws and restarts; ``settings.seed`` if None.
        mask: Bool ``(..., K)``, True for real pairs.
        main: The main arm's directions from the same pairs, seed and settings; directions that keep
            its theta^N take that and the CCS numbers from it. The result is the same.

    Raises:
        UserError: No such direction, or activations of other shapes.
    """
    entry = get_direction(name)
    if entry.of != "activations":
        raise UserError(f"Direction {name} is not found from activations; ask Chameleon.edits.")
    seed = settings.seed if seed is None else seed
    if h_p.dim() not in (3, 4) or h_n.shape != h_p.shape:
        raise UserError(
            f"h_p {tuple(h_p.shape)} and h_n {tuple(h_n.shape)} must both be "
            "(L, K, d) or (U, L, K, d)."
        )
    size = max(1, LAYER_BYTES // max(1, h_p[0].numel() * h_p.element_size()))
    # Random directions are one draw for all layers.
    draws = "random" in (settings.direction_personal, settings.direction_neutral)
    if name != "paper" or draws or mask is not None or h_p.dim() == 4 or size >= len(h_p):
        return _found(entry, h_p, h_n, settings, seed, mask, main)
    found = [
        _found(entry, h_p[at : at + size], h_n[at : at + size], settings, seed, None, None)
        for at in range(0, len(h_p), size)
    ]
    joined: dict[str, Any] = {n: torch.cat([getattr(part, n) for part in found]) for n in _TENSORS}
    names = found[0].diagnostics
    joined["diagnostics"] = {n: torch.cat([part.diagnostics[n] for part in found]) for n in names}
    return replace(found[0], **joined)


def _found(
    entry: Direction,
    h_p: Tensor,
    h_n: Tensor,
    settings: EditSettings,
    seed: int,
    mask: Tensor | None,
    main: Directions | None,
) -> Directions:
    """Directions of one kind, checked, gated and with their diagnostics."""
    if entry.rows is not None:
        (h_n, h_p), main = entry.rows(h_n, h_p, seed), None
    lead, (k, d) = h_p.shape[:-2], h_p.shape[-2:]
    p, n = h_p.reshape(-1, k, d), h_n.reshape(-1, k, d)
    mask = check_pairs(n, p, None if mask is None else mask.reshape(-1, k))
    seen = Reading(p, n, mask, settings, seed, main)
    found = entry.find(seen)
    # The paper's layers are ranked by CCS loss even where another estimator gives theta^N; all
    # others sit at its layers.
    ranked = entry.kind == "paper" and settings.layers_rule != "all"
    told: dict[str, Tensor] = {}
    loss = torch.full((len(p),), float("nan"), device=p.device)
    if ranked or "ccs" in vars(seen):
        _, loss, told = seen.ccs
    nothing = torch.zeros(len(p), d, device=p.device)
    theta_p = nothing if found.theta_p is None else found.theta_p
    theta_n = nothing if found.theta_n is None else found.theta_n
    difference = mean_difference(p, n, mask)  # (G, d), from N to P
    # Each direction must point to its own class; the CCS sign is the one training ended with.
    open_ = settings.edit_sign_gate == "none"
    gate_p = ((theta_p * difference).sum(-1) > 0) | open_
    gate_n = ((theta_n * difference).sum(-1) < 0) | open_
    logged = geometry(p, n, mask, theta_p, theta_n, difference) | told
    boosts, removes = found.boost and found.theta_p is not None, found.remove
    return Directions(
        theta_p=theta_p.reshape(*lead, d),
        theta_n=theta_n.reshape(*lead, d),
        ccs_loss=loss.reshape(lead),
        alpha_p=settings.edit_alpha_p if boosts else 0.0,
        alpha_n=settings.edit_alpha_n if removes and found.theta_n is not None else 0.0,
        gate_p=gate_p.reshape(lead),
        gate_n=gate_n.reshape(lead),
        diagnostics={name: value.reshape(lead) for name, value in logged.items()},
    )


def choose_layers(loss: Tensor, rule: str, k: int | None = None) -> tuple[int, ...]:
    """Layer numbers, ascending; ties of the loss go to the earlier layer.

    ``elbow``: sort the losses, take the running mean m, and keep the layers before its largest jump
    (AlignEZ, appendix A.5). ``elbow_literal`` keeps one layer fewer, as the published code does.

    Args:
        loss: ``(L,)``, one loss per layer.
        rule: ``elbow`` | ``elbow_literal`` | ``top_k`` | ``all``.
        k: Number of layers of ``top_k``.

    Raises:
        UserError: The rule keeps no layer (R17), or cannot be applied to these losses.
    """
    check_option("layers_rule", rule)
    if loss.dim() != 1 or loss.numel() == 0:
        raise UserError(f"Layer choice needs one loss per layer, not shape {tuple(loss.shape)}.")
    n = loss.numel()
    if rule == "all":
        return tuple(range(n))
    if not bool(torch.isfinite(loss).all()):
        raise UserError(f"layers_rule {rule} needs a finite CCS loss for every layer.")
    order = torch.argsort(loss.double(), stable=True)
    if rule == "top_k":
        if k is None or not 1 <= k <= n:
            raise UserError(f"layers_rule top_k needs layers_k between 1 and {n}, not {k}.")
        count = k
    else:
        count = _elbow(loss.double()[order]) - (rule == "elbow_literal")
    if count < 1:
        raise UserError(
            f"layers_rule {rule} keeps no layer for these losses, so nothing would be edited; "
            "use elbow or top_k."
        )
    return tuple(sorted(order[:count].tolist()))


def _elbow(ascending: Tensor) -> int:
    """``k* = argmax_k m[k+1] - m[k]`` over k = 1 .. n-2, the smallest on ties."""
    n = ascending.numel()
    if n < 3:
        raise UserError(f"An elbow needs 3 layers, not {n}; use layers_rule top_k or all.")
    means = ascending.cumsum(0) / torch.arange(1, n + 1, dtype=torch.float64)
    jumps = means[1 : n - 1] - means[: n - 2]  # jumps[i] belongs to k = i + 1
    return int((jumps == jumps.max()).nonzero()[0]) + 1
