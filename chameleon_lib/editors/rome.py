"""ROME: one association, written as a change of rank one into one MLP's down projection.

``W k`` is what an MLP says at the subject's last token. ROME looks for a value ``v*`` there under
which the model gives the wanted answer after the question, alone and behind prefixes, and changes
``W`` so that the subject's key maps to it:

    u = mean_j k_j / |mean_j k_j|,   r = (v* - W k_0) / (k_0 . u),   W <- W + r u^T

with ``C = I`` in the paper's use of it, so that no statistics of a corpus are needed. Source:
arXiv 2512.13676 for the settings; the method is that of "Locating and Editing Factual Associations
in GPT" (2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor, nn

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.editors.changes import Change
from chameleon_lib.editors.editor import Editor
from chameleon_lib.editors.request import Request
from chameleon_lib.editors.sites import Site, site_of
from chameleon_lib.editors.tokens import Asked, SubjectRows, asked, read_once, subject_place, wide
from chameleon_lib.editors.undo import Trace
from chameleon_lib.errors import UserError

_STARTS = ("The", "Therefore", "Because", "I", "You")
CONTEXTS = ((5, 10), (10, 10))  # (tokens of a prefix, how many) each
_LEAST = 0.1  # of |k_0|: how much of the bare key must lie along u


def sample_prefixes(
    backbone: HFBackbone, contexts: Sequence[tuple[int, int]] = CONTEXTS, *, seed: int = 0
) -> list[str]:
    """What a model says after a few common words: prefixes under which an edit must hold.

    Args:
        contexts: (tokens, how many) each; the words take turns.
        seed: Of the draws; the generator of the caller is left as it was.
    """
    tokenizer, model, found = backbone.codec.tokenizer, backbone.model, list[str]()
    with backbone.lock, torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for tokens, count in contexts:
            for at in range(count):
                word = _STARTS[at % len(_STARTS)]
                ids = tokenizer(word, return_tensors="pt").input_ids.to(backbone.device)
                drawn = model.generate(
                    ids, do_sample=True, max_new_tokens=tokens, min_new_tokens=tokens,
                    attention_mask=torch.ones_like(ids), pad_token_id=backbone.codec.pad_id,
                )[0]  # fmt: skip
                said = tokenizer.decode(drawn, skip_special_tokens=True)
                lead = "" if backbone.family == "decoder" else f"{word} "
                found.append(" ".join(f"{lead}{said}".split()) + ". ")
    return found


class ROME(Editor):
    """See the module.

    Args:
        backbone: The model.
        layer: The edited layer; the paper's, or as deep, if None.
        prefixes: Said before the question; drawn from the model at the first edit if None. The
            same for all edits of one editor.
        seed: Of that draw.
        steps: Updates at most.
        lr: Of Adam, on the change of the value.
        kl: Weight of the divergence of what follows "<subject> is a".
        decay: Weight of ``|d| / |v0|^2``.
        most: The change is at most so many times as long as the value.
        stop: Loss at which the fit ends, in nats.
    """

    name = "ROME"

    def __init__(
        self,
        backbone: HFBackbone,
        *,
        layer: int | None = None,
        prefixes: Sequence[str] | None = None,
        seed: int = 0,
        steps: int = 24,
        lr: float = 0.5,
        kl: float = 0.0625,
        decay: float = 1e-3,
        most: float = 4.0,
        stop: float = 5e-2,
    ) -> None:
        super().__init__(backbone)
        self.site = site_of(backbone, "rome", layer)
        self.steps, self.lr, self.kl, self.decay = steps, lr, kl, decay
        self.most, self.stop, self.seed = most, stop, seed
        self._prefixes = None if prefixes is None else list(prefixes)
        self._factors: list[tuple[Tensor, Tensor]] = []  # of the edit that was opened last

    @property
    def prefixes(self) -> list[str]:
        """What is said before a question in the fit, without the bare question's nothing."""
        if self._prefixes is None:
            self._prefixes = sample_prefixes(self.backbone, seed=self.seed)
        return self._prefixes

    def _opened(self, fits: int) -> Callable[[], None]:  # noqa: ARG002  (LoRA counts them)
        _ = self.prefixes  # drawn from the model before it is edited
        self._factors = []
        return kept_weight(self.site)

    def _written(self) -> list[Change]:
        lefts, rights = zip(*self._factors, strict=True)
        dtype = wide(self.site.weight).dtype
        return [
            Change(
                self.site.module_name, torch.cat(lefts, dim=1).to(dtype).to(self.backbone.device),
                torch.cat(rights).to(dtype).to(self.backbone.device),
            )
        ]  # fmt: skip

    def _fit(self, requests: Sequence[Request]) -> Trace:
        started = perf_counter()
        found = [self._value(request) for request in requests]
        with torch.no_grad():
            factors = rank_change(
                torch.stack([one.keys[0] for one in found]),
                torch.stack([unit_key(one.keys) for one in found]),
                torch.stack([one.change for one in found]),
            )
            self._factors.append(factors)
            weight, change = self.site.weight, factors[0] @ factors[1]
            weight.copy_((weight.double().cpu() + change).to(weight.dtype))
        size = sum(change.shape) * len(requests) * weight.element_size()
        return Trace(
            self.name,
            tuple(loss for one in found for loss in one.loss),
            tuple(norm for one in found for norm in one.norms),
            max(one.limit for one in found),
            sum(len(one.norms) for one in found),
            perf_counter() - started,
            (self.site.name,),
            size,
            len(found[0].change),
        )

    def _value(self, request: Request) -> _Value:
        """The change of the value at the subject's token that gives the answer."""
        backbone, site = self.backbone, self.site
        told = f"{request.subject} is a"
        alone = Asked(
            backbone.codec.prompts([told])[0], [], subject_place(backbone, told, request.subject)
        )
        rows = [asked(backbone, request, prefix) for prefix in ("", *self.prefixes)]
        read = SubjectRows(backbone, [*rows, alone])
        with torch.no_grad():
            keys, values, logits = _seen(site, read)
            before = logits[-1].log_softmax(dim=-1)[0]  # (V,)
        v0, wanted = values[0], torch.tensor(rows[0].target, device=backbone.device)
        length = float(v0.norm())
        limit = self.most * length
        change = torch.zeros_like(v0, requires_grad=True)
        optimizer = torch.optim.Adam([change], lr=self.lr)
        losses, norms = [], []
        with read_once(backbone, site.layer):  # the change is above those layers
            for step in range(self.steps + 1):
                with torch.enable_grad(), _added(site.module, change, read.places):
                    logits = read.logits()
                said = torch.stack(
                    [nn.functional.cross_entropy(row, wanted) for row in logits[:-1]]
                ).mean()
                after = logits[-1].log_softmax(dim=-1)[0]
                drift = (after.exp() * (after - before)).sum()
                loss = said + self.kl * drift + self.decay * change.norm() / length**2
                losses.append(float(loss.detach()))
                if losses[-1] < self.stop or step == self.steps:
                    break
                (change.grad,) = torch.autograd.grad(loss, [change])
                # The norm of no change has no slope: 0 is what torch says, and what is meant.
                optimizer.step()
                with torch.no_grad():
                    norm = float(change.norm())
                    if norm > limit:
                        change.mul_(limit / norm)
                    norms.append(min(norm, limit))
        return _Value(keys[:-1], change.detach(), tuple(losses), tuple(norms), limit)


class _Value:
    """What a fit found: ``keys`` ``(J, d_ff)`` of the contexts, and the value's ``change``."""

    def __init__(
        self,
        keys: Tensor,
        change: Tensor,
        loss: tuple[float, ...],
        norms: tuple[float, ...],
        limit: float,
    ) -> None:
        self.keys, self.change, self.loss, self.norms = keys, change, loss, norms
        self.limit = limit


def unit_key(keys: Tensor) -> Tensor:
    """``u``: the direction of the mean of keys ``(J, d_ff)``.

    Raises:
        UserError: The key of the bare question, which is the first, hardly lies along it.
    """
    mean = keys.double().mean(dim=0)
    unit = mean / mean.norm()
    bare = keys[0].double()
    if not bool(bare @ unit >= _LEAST * bare.norm()):
        raise UserError(
            "The subject's key behind the prefixes has little in common with that of the bare "
            "question, so the edit would blow up; give fewer prefixes, or another layer."
        )
    return unit


def rank_change(bare: Tensor, units: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
    """The change of ``W`` under which every bare key's output changes as wanted, float64.

    For one request ``r u^T`` with ``r = d / (k_0 . u)``; for n the one of rank n in the span of the
    n units.

    Args:
        bare: ``(n, d_ff)`` keys.
        units: ``(n, d_ff)`` directions that the change listens to.
        changes: ``(n, d)`` wanted changes of the outputs.

    Returns:
        Its factors ``(d, n)`` and ``(n, d_ff)``, on the CPU.

    Raises:
        UserError: Two of the requests have one key.
    """
    bare, units, changes = (part.double().cpu() for part in (bare, units, changes))
    heard = units @ bare.T  # (n, n): unit i on key j
    if torch.linalg.matrix_rank(heard) < len(heard):
        raise UserError(
            "Two of the requests have the same subject in the same question, so that one weight "
            "cannot answer both; give each a subject of its own."
        )
    return torch.linalg.solve(heard.T, changes).T, units


def kept_weight(site: Site) -> Callable[[], None]:
    """Copies a weight; returns what copies it back."""
    weight = site.module.weight
    before = weight.detach().clone()

    def put_back() -> None:
        with torch.no_grad():
            weight.copy_(before)

    return put_back


def _seen(site: Site, read: SubjectRows) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Keys ``(B, d_ff)`` and values ``(B, d)`` at the subjects, and the logits."""
    kept: list[Tensor] = []

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows = torch.arange(len(read.places), device=output.device)
        kept.extend(wide(part[rows, read.places]) for part in (inputs[0], output))

    handle = site.module.register_forward_hook(hook)
    try:
        logits = read.logits()
    finally:
        handle.remove()
    return kept[0], kept[1], logits


class _added:  # noqa: N801  (used as a with statement)
    """Adds a vector to a module's output ``(B, T, d)`` at one place of every row."""

    def __init__(self, module: nn.Module, change: Tensor, places: Tensor) -> None:
        self.module, self.change, self.places = module, change, places

    def __enter__(self) -> None:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            here = torch.zeros(output.shape[:2], dtype=output.dtype, device=output.device)
            here[torch.arange(len(self.places), device=output.device), self.places] = 1
            return output + here[..., None] * self.change.to(output.dtype)

        self.handle = self.module.register_forward_hook(hook)

    def __exit__(self, *_: object) -> None:
        self.handle.remove()
