"""Ours, beyond the paper: θ^P and θ^N of the very same edit, fitted by a preference loss.

The form of the edit stays the paper's (section 3.2: boost along θ^P, remove along θ^N, rank 2, at
the MLP outputs), and so do its data: the self-generated pairs. Only the way the directions are
found differs. With the backbone frozen we minimise

    −log σ( log p(y^P | plain prompt) − log p(y^N | plain prompt) )

over the directions. This is a preference-loss fit restricted to the paper's edit; it is related to
BiPO (a steering vector by a preference loss), ReFT (low-rank edits of representations) and
DPO-LoRA, and it claims no more than that. No gold label enters unless the caller feeds gold pairs,
which is what the positive control does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from chameleon_lib.core.backbone import Backbone, Prepared, Reduce
from chameleon_lib.core.checks import FitCheck
from chameleon_lib.core.directions import Directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import PreferencePair, PreparedUser, keep_different
from chameleon_lib.core.robust import by_owner, pooled_gradient
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.sources import with_golds
from chameleon_lib.core.task import answer_prompt
from chameleon_lib.errors import UserError

CHECK_EVERY = 5  # steps between looks at the held-out users
SAMPLE = 64  # edited positions per layer that the size of a step is measured at, at most
_READ = 16  # answers they are read from, at most
_TOGETHER = 128  # contrasts of many users' own fits that are read at once
# What a user's edit has no business with; the leash of a guarded fit holds the model's own answers.
UNRELATED = (
    "What is the capital of Australia?",
    "Write a short poem about the sea.",
    "Explain photosynthesis in one sentence.",
    "Translate 'good morning' into French.",
    "What is 17 plus 25?",
    "List three fruits.",
    "Who wrote Romeo and Juliet?",
    "Give one tip for sleeping better.",
)
_UNRELATED_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Contrast:
    """One training example of the fit: a plain prompt, the answer to prefer and the one to leave.

    With ``rejected`` None it is an *agreed* query (both agents gave the same answer): the leash
    asks the edit to leave it alone.
    """

    prompt: str
    chosen: str
    rejected: str | None
    user_id: str


def contrasts_from_pairs(
    task: str,
    kept: Sequence[PreferencePair],
    identical: Sequence[PreferencePair],
    settings: EditSettings,
) -> list[Contrast]:
    """Self-generated contrasts under the plain prompt; agreed queries go on the leash."""
    contrasts, baseline = [], settings.prompts_baseline
    for pair in [*kept, *identical]:
        same = pair.identical(settings.pairs_drop_identical)
        if not pair.answer_p.strip() or not pair.answer_n.strip():
            continue
        prompt = answer_prompt(
            task, pair.items, pair.query, role="P", insight=None, baseline=baseline
        )
        rejected = None if same else pair.answer_n
        contrasts.append(Contrast(prompt, pair.answer_p, rejected, pair.user_id))
    return contrasts


def gold_contrasts(
    task: str,
    users: Sequence[PreparedUser],
    pairs: Sequence[PreferencePair],
    settings: EditSettings,
) -> list[Contrast]:
    """The positive control's contrasts: gold answer against neutral output, train users only.

    Raises:
        UserError: A query has no gold answer.
    """
    kept, identical = keep_different(with_golds(pairs, users), settings)
    return contrasts_from_pairs(task, kept, identical, settings)


def swap_contrasts(contrasts: Sequence[Contrast], seed: int) -> list[Contrast]:
    """Chosen and rejected swapped at random (control C10 for the fitted edit)."""
    generator = torch.Generator().manual_seed(seed)
    swapped = []
    for contrast in contrasts:
        if contrast.rejected is not None and torch.rand((), generator=generator) < 0.5:
            contrast = replace(contrast, chosen=contrast.rejected, rejected=contrast.chosen)
        swapped.append(contrast)
    return swapped


class PlainPrompts:
    """The prompts of one fit, each read once, together at their first use.

    What stands beside a prompt in a batch moves its last digits, so a fit reads exactly its own
    prompts: it finds the same whatever other fits there are. Fits of the same prompts may share
    them.
    """

    def __init__(self, backbone: Backbone, prompts: Sequence[str]) -> None:
        self.backbone = backbone
        self._rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}

    @property
    def texts(self) -> list[str]:
        """The distinct prompts, in the order they are read."""
        return list(self._rows)

    @cached_property
    def _prepared(self) -> Prepared:
        return self.backbone.prepare(self.texts, filed=True)

    def chunk(self, prompts: Sequence[str]) -> Prepared:
        """Some of the prompts, prepared, in the order given."""
        return self.backbone.rows(self._prepared, [self._rows[prompt] for prompt in prompts])


@dataclass(frozen=True)
class FittedDirections:
    """Outcome of a fit."""

    edit: Edit  # the fitted edit
    loss: list[float]  # training loss per step, nats
    # (step, held-out preference loss + leash) at each check, from step 0, the unedited model, where
    # the fit is guarded; empty without hold-out
    held_out: list[tuple[int, float]]
    # Steps taken by the returned directions (early stopping); the last one without hold-out. 0: no
    # edit was better on those held out, and the one returned has strength 0
    best_step: int
    n_pairs: int  # contrasts used for gradient steps
    n_agreed: int  # agreed queries on the leash
    n_held_out: int  # contrasts and agreed queries held out
    learned_tokens: int = 0  # answer tokens scored with a gradient, where the scorer counts
    looked_tokens: int = 0  # answer tokens scored without one, likewise
    # The fit took, reading of prompts not read before included. They differ from run to run and
    # must reach no table that is compared.
    seconds: float = 0.0

    def log(self) -> dict[str, Any]:
        """What a log keeps of the fit, JSON-able: all but the edit and the seconds."""
        told = {item.name: getattr(self, item.name) for item in fields(self)[1:-1]}
        return told | {"held_out": [list(look) for look in self.held_out]}

    @classmethod
    def of(cls, edit: Edit, log: Mapping[str, Any]) -> FittedDirections:
        """The outcome from its edit and a kept log."""
        held_out = [(int(step), float(loss)) for step, loss in log["held_out"]]
        return cls(edit, **{**log, "held_out": held_out})


@dataclass(frozen=True, eq=False)
class EditProfile:
    """An edit with where it came from: what ``Chameleon.fit`` returns."""

    task: str  # task of the users
    edit: Edit  # the edit, ready for ``backbone.generate(..., edit=profile.edit)``
    settings: EditSettings  # settings of the fit
    backbone: tuple[str, str]  # name and fingerprint of the model the directions belong to
    # Ids of the users whose pairs were pooled (one for a personal profile); their pseudonyms where
    # the profile was loaded from a store
    users: tuple[str, ...]
    n_pairs: int  # pairs the directions were made from
    n_identical: int  # pairs that were discarded because both outputs agree
    # Directions of all layers with diagnostics; None for fitted directions
    directions: Directions | None = None
    # Record of the gradient fit; None for the paper's directions
    fitted: FittedDirections | None = None
    # What the edit does to users held out of its fit; None where nobody was (``check_edit``)
    check: FitCheck | None = None
    revision: str = ""  # revision of the model on the hub; empty for a local checkpoint
    # SHA-256 of the wording of all prompts (``prompts_digest``); empty if unknown
    prompts: str = ""


@dataclass(frozen=True)
class _Chunk:
    """A mini-batch whose prompts were read once, with what its answers score unedited."""

    prepared: Prepared
    chosen: list[str]
    rejected: list[str] | None
    base: Tensor  # of the chosen answers, (B,): sums, or means per token
    reduce: Reduce = "sum"
    owners: tuple[str, ...] = ()  # user per row

    def loss(self, backbone: Backbone, edit: Edit | None, leash: float) -> Tensor:
        """Mean loss of the contrasts, or mean leash penalty for agreed queries. Scalar, nats."""
        chosen = self.base  # (B,)
        if edit is not None:
            chosen = backbone.score(self.prepared, self.chosen, edit=edit, reduce=self.reduce)
        strain = leash * (self.base - chosen).clamp_min(0).mean()
        if self.rejected is None:
            return strain
        if self.reduce == "mean":  # likelihood
            return strain - (chosen - self.base).mean()
        rejected = backbone.score(self.prepared, self.rejected, edit=edit)  # (B,)
        return strain - logsigmoid(chosen - rejected).mean()

    def row_losses(self, backbone: Backbone, edit: Edit | None, leash: float) -> Tensor:
        """:meth:`loss` of every row by itself, (B,)."""
        chosen = backbone.score(self.prepared, self.chosen, edit=edit, reduce=self.reduce)
        strain = leash * (self.base - chosen).clamp_min(0)
        if self.rejected is None:
            return strain
        if self.reduce == "mean":
            return strain - (chosen - self.base)
        return strain - logsigmoid(
            chosen - backbone.score(self.prepared, self.rejected, edit=edit)
        )

    def pooled(
        self, backbone: Backbone, steps: _Steps, settings: EditSettings
    ) -> tuple[Tensor, Tensor]:
        """Loss and gradient with no user's influence unbounded (``guard_cap``, ``guard_trim``).

        The rows have directions of their own, so one pass gives the gradient of each; a user's is
        the mean of its rows.
        """
        thetas = steps.thetas.detach()  # (2, L, d)
        rows = thetas[:, :, None].repeat(1, 1, len(self.chosen), 1).requires_grad_()
        losses = self.row_losses(backbone, steps.edit(rows), settings.fit_leash)
        (gradient,) = torch.autograd.grad(losses.sum(), [rows])  # (2, L, B, d)
        flat = gradient.permute(2, 0, 1, 3).flatten(1)  # (B, 2 L d)
        users = by_owner(flat, self.owners)
        whole = pooled_gradient(users, settings.guard_cap, settings.guard_trim)
        return losses.detach().mean(), whole.view_as(thetas)


def _chunks(
    prompts: PlainPrompts, contrasts: Sequence[Contrast], settings: EditSettings
) -> list[_Chunk]:
    chunks, size = [], settings.fit_batch
    reduce: Reduce = "mean" if settings.fit_loss == "likelihood" else "sum"
    for start in range(0, len(contrasts), size):
        part = contrasts[start : start + size]
        prepared = prompts.chunk([contrast.prompt for contrast in part])
        chosen = [contrast.chosen for contrast in part]
        with torch.no_grad():
            base = prompts.backbone.score(prepared, chosen, reduce=reduce).detach()
        rejected = [c.rejected for c in part if c.rejected is not None] or None
        owners = tuple(contrast.user_id for contrast in part)
        chunks.append(_Chunk(prepared, chosen, rejected, base, reduce, owners))
    return chunks


def _split(
    contrasts: Sequence[Contrast], holdout: float, generator: torch.Generator
) -> tuple[list[Contrast], list[Contrast]]:
    """Hold out whole users, so that early stopping looks at users the gradient never saw.

    ``holdout`` of them, rounded down: fewer than 1 / share users are all learned from.
    """
    users = sorted({contrast.user_id for contrast in contrasts})
    n_held = int(len(users) * holdout)
    order = torch.randperm(len(users), generator=generator).tolist()
    held = {users[index] for index in order[:n_held]}
    train = [contrast for contrast in contrasts if contrast.user_id not in held]
    return train, [contrast for contrast in contrasts if contrast.user_id in held]


@torch.no_grad()
def _held_out(
    backbone: Backbone, edit: Edit | None, chunks: tuple[list[_Chunk], list[_Chunk]], leash: float
) -> float:
    """Preference loss and leash penalty of those held out, nats; each a mean over mini-batches."""
    parts = ([chunk.loss(backbone, edit, leash) for chunk in some] for some in chunks if some)
    return float(sum(torch.stack(losses).mean() for losses in parts))


def _unrelated(backbone: Backbone, settings: EditSettings) -> list[_Chunk]:
    """Leash on the model's own answers to prompts that have nothing to do with the users."""
    prompts = PlainPrompts(backbone, UNRELATED)
    answers = backbone.generate(UNRELATED, max_new_tokens=_UNRELATED_TOKENS)
    told = zip(UNRELATED, answers, strict=True)
    agreed = [Contrast(prompt, answer, None, "") for prompt, answer in told if answer]
    return _chunks(prompts, agreed, settings)


@torch.no_grad()
def _sample_outputs(backbone: Backbone, chunk: _Chunk, site: str) -> Tensor:
    """What the unedited model puts out where the edit will be, ``(n_layers, N, d)``.

    At up to :data:`SAMPLE` positions of a few preferred answers, read one at a time: a batch would
    hold padding.
    """
    modules, answers = backbone.sites(site), chunk.chosen[:_READ]
    seen: list[list[Tensor]] = [[] for _ in modules]

    def watch(layer: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            out = output[0] if isinstance(output, tuple) else output
            rows = out.reshape(-1, out.shape[-1])
            some = torch.linspace(0, len(rows) - 1, min(len(rows), SAMPLE // len(answers)))
            seen[layer].append(rows[some.long().to(rows.device)].float().cpu())

        return hook

    handles = [module.register_forward_hook(watch(layer)) for layer, module in enumerate(modules)]
    try:
        for row, answer in enumerate(answers):
            backbone.score(backbone.rows(chunk.prepared, [row]), [answer])
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([torch.cat(parts) for parts in seen])


def change_ratio(x: Tensor, new: Edit, old: Edit | None = None) -> float:
    """``||x̂_new − x̂_old|| / ||x||``, mean over tokens and layers; ``old`` None is no edit.

    Args:
        x: Outputs at the layers of the edits, ``(L, N, d)``.
    """
    change = _changes(x, new) if old is None else _changes(x, new) - _changes(x, old)
    return float((change.norm(dim=-1) / x.norm(dim=-1).clamp_min(1e-30)).mean())


def _changes(x: Tensor, edit: Edit) -> Tensor:
    factors = [edit.factors(row) for row in range(len(edit.layers))]
    u, z = (torch.stack(parts).to(x) for parts in zip(*factors, strict=True))
    return x @ z.mT @ u.mT


def _unit_rows(thetas: Tensor) -> Tensor:
    return thetas / thetas.norm(dim=-1, keepdim=True)


class _Steps:
    """Adam's steps on the directions, as they are (plain) or as large as ``fit_ratio`` says."""

    def __init__(
        self, thetas: Tensor, layers: Sequence[int], settings: EditSettings, x: Tensor | None
    ) -> None:
        self.thetas, self.layers, self.settings, self.x = thetas, layers, settings, x
        self.optimizer: torch.optim.Optimizer
        if settings.guard_cap is not None or settings.guard_trim > 0:
            # Adam divides by a gradient's own size, so that a bound on it would bound no step.
            self.optimizer = torch.optim.SGD([thetas], lr=1.0, momentum=0.9)
        else:
            rate = 1.0 if x is not None else settings.fit_lr
            self.optimizer = torch.optim.Adam([thetas], lr=rate)
        self.size = thetas.shape[-1] ** -0.5  # of the latest step

    def edit(self, values: Tensor) -> Edit:
        return Edit.of(self.settings, self.layers, values[0], values[1])

    def take(self, loss: Tensor, step: int) -> None:
        """One step; the first is number 1."""
        self.optimizer.zero_grad()
        loss.backward()
        self.moved(step)

    def moved(self, step: int) -> None:
        """:meth:`take` with the gradient that stands at the directions."""
        before = self.thetas.detach().clone()
        self.optimizer.step()
        if self.x is None:
            return
        with torch.no_grad():
            change, old = self.thetas - before, self.edit(before)
            if not change.any():  # a bounded gradient may be 0; no size would make a step of it
                return
            wanted = self.settings.fit_ratio * (1 - (step - 1) / self.settings.fit_steps)
            # The change of the edit is nearly in proportion to a small step: a few trials do.
            for _ in range(4):
                made = change_ratio(self.x, self.edit(before + self.size * change), old)
                self.size *= wanted / max(made, 1e-12)
            self.thetas.copy_(_unit_rows(before + self.size * change))


def fit_by_preference(
    backbone: Backbone,
    contrasts: Sequence[Contrast],
    layers: Sequence[int],
    settings: EditSettings,
    *,
    seed: int = 0,
    prompts: PlainPrompts | None = None,
) -> FittedDirections:
    """Fit one shared pair of directions per layer on preference contrasts, from seeded starts.

    Two things keep the fit sound. A share of the *users*, ``fit_holdout`` rounded down, is held out
    and the directions of the best held-out loss are returned. And the leash: the edited model must
    not find the preferred answer, nor the common answer of an agreed query, less likely than the
    unedited one does, ``fit_leash · mean(max(0, log p_0(y) − log p_edit(y)))``; a preference loss
    alone is content when both answers become unlikely, as long as the rejected one falls faster.

    A guarded fit (``fit_rule``) adds three. The steps are as large as ``fit_ratio`` says of what
    the edit changes, so that no rate depends on the model's width or scale. The model's own answers
    to :data:`UNRELATED` prompts are on the leash. And the unedited model is a candidate of early
    stopping: where no look is better, the returned edit has strength 0.

    ``guard_cap`` and ``guard_trim`` bound what one user can do to a step: every user's gradient in
    it is clipped and the users' are pooled (``core.robust``), and the steps go along their running
    sum (momentum), whose direction a bounded gradient moves only so far.

    With fewer than 1 / share users nobody is held out, nor where those drawn are all who have a
    preference. Then, and where those held out have none, all ``fit_steps`` are run and the last
    directions are returned.

    Args:
        prompts: The prompts of ``contrasts``, if another fit has read the same ones.

    Raises:
        UserError: No contrast with a rejected answer.
        ValueError: ``prompts`` are not those of ``contrasts``.
    """
    generator = torch.Generator().manual_seed(seed)
    different = [contrast for contrast in contrasts if contrast.rejected is not None]
    agreed = [contrast for contrast in contrasts if contrast.rejected is None]
    if not different:
        raise UserError("The fit needs at least one pair with two different answers; got none.")
    train, held = _split([*different, *agreed], settings.fit_holdout, generator)
    if not any(contrast.rejected is not None for contrast in train):
        train, held = [*different, *agreed], []
    use_leash, leash = settings.fit_leash > 0, settings.fit_leash
    read = PlainPrompts(backbone, [contrast.prompt for contrast in contrasts])
    if prompts is not None:
        if prompts.texts != read.texts:
            raise ValueError("the prompts are not those of the contrasts")
        read = prompts

    def chunked(group: Sequence[Contrast]) -> tuple[list[_Chunk], list[_Chunk]]:
        pairs = [contrast for contrast in group if contrast.rejected is not None]
        same = [contrast for contrast in group if contrast.rejected is None and use_leash]
        order = torch.randperm(len(pairs), generator=generator).tolist()
        shuffled = [pairs[index] for index in order]
        return _chunks(read, shuffled, settings), _chunks(read, same, settings)

    pair_chunks, leash_chunks = chunked(train)
    held_chunks = chunked(held)
    thetas = _unit_rows(torch.randn(2, len(layers), backbone.d, generator=generator))  # (2, L, d)
    guarded, x = settings.fit_rule == "guarded", None
    if guarded:
        x = _sample_outputs(backbone, pair_chunks[0], settings.edit_site)[list(layers)]
        leash_chunks += _unrelated(backbone, settings) if use_leash else []
    steps = _Steps(thetas.requires_grad_(), layers, settings, x)

    losses: list[float] = []
    curve: list[tuple[int, float]] = []
    best, best_step, best_loss = thetas.detach().clone(), 0, float("inf")
    if guarded and held_chunks[0]:
        best_loss = _held_out(backbone, None, held_chunks, leash)
        curve.append((0, best_loss))
    order: list[int] = []
    bounded = settings.guard_cap is not None or settings.guard_trim > 0
    for step in range(1, settings.fit_steps + 1):
        if not order:
            order = torch.randperm(len(pair_chunks), generator=generator).tolist()
        chunks = [pair_chunks[order.pop()]]
        if leash_chunks:
            chunks.append(leash_chunks[step % len(leash_chunks)])
        if bounded:
            parts = [chunk.pooled(backbone, steps, settings) for chunk in chunks]
            loss = torch.stack([part for part, _ in parts]).sum()
            thetas.grad = torch.stack([gradient for _, gradient in parts]).sum(0)
            steps.moved(step)
        else:
            loss = chunks[0].loss(backbone, steps.edit(thetas), leash)
            for chunk in chunks[1:]:
                loss = loss + chunk.loss(backbone, steps.edit(thetas), leash)
            steps.take(loss, step)
        losses.append(float(loss.detach()))
        if not held_chunks[0]:
            best, best_step = thetas.detach().clone(), step
        elif step % CHECK_EVERY == 0 or step == settings.fit_steps:
            edit = steps.edit(thetas.detach())
            curve.append((step, _held_out(backbone, edit, held_chunks, leash)))
            if curve[-1][1] < best_loss:
                best, best_step, best_loss = thetas.detach().clone(), step, curve[-1][1]
            elif step - best_step >= settings.fit_patience * CHECK_EVERY:
                break
    found = steps.edit(_unit_rows(best))
    return FittedDirections(
        edit=found.without_strength() if best_step == 0 else found,
        loss=losses,
        held_out=curve,
        best_step=best_step,
        n_pairs=sum(contrast.rejected is not None for contrast in train),
        n_agreed=sum(contrast.rejected is None for contrast in train) if use_leash else 0,
        n_held_out=len(held),
    )


def influences(
    backbone: Backbone, contrasts: Sequence[Contrast], settings: EditSettings
) -> Tensor:
    """What every contrast would do to a fit: the gradient of its loss at no edit, ``(K, L d)``.

    Of an offset added to the outputs at the sites of all layers, the same at all positions of the
    answer: the first step of any edit there, whatever its form. Contrasts without a rejected answer
    pull nowhere at no edit and get zeros. Float32 on the CPU.
    """
    modules, d = backbone.sites(settings.edit_site), backbone.d
    if settings.edit_site == "gate_proj":
        raise UserError("Influences are measured at mlp_out or block_out; change edit_site.")
    found = torch.zeros(len(contrasts), len(modules) * d)
    asked = [at for at, contrast in enumerate(contrasts) if contrast.rejected is not None]
    prepared = backbone.prepare([contrasts[at].prompt for at in asked]) if asked else None
    mean = settings.fit_loss == "likelihood"
    for rows, read in backbone.in_turn(prepared) if prepared is not None else ():
        here = [contrasts[asked[row]] for row in rows]
        offset = torch.zeros(len(modules), len(here), 1, d, requires_grad=True)
        with torch.enable_grad(), _Offsets(modules, offset):
            chosen = [contrast.chosen for contrast in here]
            score = backbone.score(read, chosen, reduce="mean" if mean else "sum")
            loss = -score
            if not mean:
                rejected = [contrast.rejected or "" for contrast in here]
                loss = -logsigmoid(score - backbone.score(read, rejected))
            (gradient,) = torch.autograd.grad(loss.sum(), [offset])  # (L, B, 1, d)
        found[[asked[row] for row in rows]] = gradient[:, :, 0].transpose(0, 1).flatten(1).cpu()
    return found


class _Offsets:
    """Adds an offset ``(L, B, 1, d)`` to what the modules put out, while the block is open."""

    def __init__(self, modules: Sequence[torch.nn.Module], offset: Tensor) -> None:
        self.modules, self.offset = modules, offset
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        for layer, module in enumerate(self.modules):
            self.handles.append(module.register_forward_hook(self._hook(layer)))

    def __exit__(self, *_: object) -> None:
        while self.handles:
            self.handles.pop().remove()

    def _hook(self, layer: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            x = output[0] if isinstance(output, tuple) else output
            own = self.offset[layer].to(x)  # (B, 1, d)
            wide = x.reshape(len(own), -1, x.shape[-1]) + own  # OPT joins rows and tokens
            moved = wide.reshape(x.shape)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        return hook


def leashed(edit: Edit, x: Tensor, limit: float) -> Edit:
    """The edit, or a weaker one that changes outputs by at most ``limit`` (``guard_change``).

    Both strengths are multiplied by one factor, found by halving.

    Args:
        edit: Shared by all rows.
        x: Outputs of the unedited model at the layers of the edit, ``(L, N, d)``.
        limit: Of :func:`change_ratio`.
    """

    def scaled(factor: float) -> Edit:
        return replace(edit, alpha_p=factor * edit.alpha_p, alpha_n=factor * edit.alpha_n)

    if not edit.changes_anything or change_ratio(x, edit) <= limit:
        return edit
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if change_ratio(x, scaled(middle)) <= limit else (low, middle)
    return scaled(low)


def sample_outputs(
    backbone: Backbone, contrasts: Sequence[Contrast], edit: Edit, settings: EditSettings
) -> Tensor:
    """Outputs of the unedited model where an edit will be, ``(L, N, d)``, for :func:`leashed`."""
    some = list(contrasts[:_READ])
    prompts = PlainPrompts(backbone, [contrast.prompt for contrast in some])
    [chunk] = _chunks(prompts, some, settings.with_(fit_batch=_READ))
    return _sample_outputs(backbone, chunk, edit.site)[list(edit.layers)]


def fit_each(
    backbone: Backbone,
    own: Sequence[Sequence[Contrast]],
    layers: Sequence[int],
    settings: EditSettings,
    *,
    seed: int = 0,
) -> list[Edit]:
    """An edit of one's own for each of many users, all fitted in the same batches.

    Every user's directions learn from that user's contrasts alone, in ``fit_steps`` steps of Adam's
    own size (``fit_lr``) on all of them; nobody is held out. The sum of the users' losses has no
    term that two of them share, and Adam works number by number: what one user sends moves no
    other's edit, beyond the last digits that the width of a padded batch decides, and not by a bit
    where that stays. All users start at the same directions.

    Args:
        own: Contrasts per user; agreed queries are left out. A user without any other gets an edit
            of strength 0.
    """
    groups = [[c for c in contrasts if c.rejected is not None] for contrasts in own]
    flat = [contrast for group in groups for contrast in group]
    owner = torch.tensor([at for at, group in enumerate(groups) for _ in group])
    share = torch.tensor([1 / len(group) for group in groups for _ in group])
    generator = torch.Generator().manual_seed(seed)
    start = _unit_rows(torch.randn(2, len(layers), 1, backbone.d, generator=generator))
    thetas = start.repeat(1, 1, len(groups), 1).requires_grad_()  # (2, L, U, d)
    optimizer = torch.optim.Adam([thetas], lr=settings.fit_lr)
    if flat:
        prompts = PlainPrompts(backbone, [contrast.prompt for contrast in flat])
        chunks = _chunks(prompts, flat, settings.with_(fit_batch=_TOGETHER))
        for _ in range(settings.fit_steps):
            optimizer.zero_grad()
            for at, chunk in enumerate(chunks):
                some = slice(at * _TOGETHER, at * _TOGETHER + len(chunk.chosen))
                rows = thetas[:, :, owner[some]]
                edit = Edit.of(settings, layers, rows[0], rows[1])
                losses = chunk.row_losses(backbone, edit, settings.fit_leash)
                (losses * share[some].to(losses)).sum().backward()
            optimizer.step()
    found = _unit_rows(thetas.detach())
    edits = [Edit.of(settings, layers, *found[:, :, at]) for at in range(len(groups))]
    return [
        edit if group else edit.without_strength()
        for edit, group in zip(edits, groups, strict=True)
    ]
