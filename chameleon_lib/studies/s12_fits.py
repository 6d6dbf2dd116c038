"""Fits of many users at once, each of his own: every form of edit, on the same lessons.

Users are rows of one batch. A step takes a few lessons of every user, and the sum of their losses
gives each user's parameters the gradient that a fit of that user alone would give them, since Adam
treats every number apart. All users start from the same draw, so that two edits differ by what was
learned and not by where they began. The forms:

- ``pair``: the paper's edit, two directions per layer (section 3.2), fitted as in ``core.fitting``;
  at the MLP output, or at the block output as in arXiv 2603.00425;
- ``vector``: one vector added at one layer, by the loss of BiPO (arXiv 2406.00045, equation 3):
  preferred answers under ``+v`` and the others under ``-v``, a sign per step;
- ``lora``: factors of rank 2 of every MLP output projection (OPPU, arXiv 2402.04401, has one LoRA
  per user; PerFit and CoPe fit less of it), by the same preference loss as ``pair``.

Without a gradient: ``paper`` (SVD and CCS), and ``mean``, authentic minus neutral outputs, added at
one layer (StyleVector, arXiv 2503.05213).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.families import model_family
from chameleon_lib.core.affine import AffineEdit
from chameleon_lib.core.backbone import Prepared
from chameleon_lib.core.directions import choose_layers, find_directions
from chameleon_lib.core.edit import AnyEdit, Edit
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.editors import Change, WeightEdit
from chameleon_lib.errors import UserError
from chameleon_lib.kit.progress import Progress
from chameleon_lib.studies.s12_people import Lesson

FORMS = ("paper", "mean", "vector", "pair", "pair_block", "lora")
LEARNED = ("vector", "pair", "pair_block", "lora")  # those with steps and a rate
RANK = 2  # of the LoRA: that of the pair
BETA = 0.1  # of BiPO's loss, as published
_GRAPH = 1 << 27  # bytes of logits that are held for one step backward; all else is ten times that


@dataclass(frozen=True)
class Recipe:
    """How a fit goes.

    Attributes:
        steps: Steps of Adam.
        batch: Lessons of every group per step.
        rate: Adam's.
        leash: Weight of the loss that preferred answers got less likely (``core.fitting``).
        layer: Of a vector; no meaning for the others.
        strength: Of both projections of a pair (``alpha_p`` and ``alpha_n``), while it is fitted
            and where it is asked; no meaning for the others.
        seed: Of the start, and of which lessons a step takes.
    """

    steps: int = 12
    batch: int = 4
    rate: float = 0.1
    leash: float = 1.0
    layer: int = 0
    strength: float = 1.0
    seed: int = 0


class Lessons:
    """Lessons with their prompts read once, and what both answers score unedited."""

    def __init__(self, backbone: HFBackbone, lessons: Sequence[Lesson]) -> None:
        self.backbone, self.lessons = backbone, list(lessons)
        self.prepared = backbone.prepare([lesson.prompt for lesson in lessons])
        self.chosen = [lesson.chosen for lesson in lessons]
        self.rejected = [lesson.rejected or lesson.chosen for lesson in lessons]
        self.differs = torch.tensor([lesson.rejected is not None for lesson in lessons])
        both = zip(self.chosen, self.rejected, strict=True)
        self.tokens = [max(len(ids) for ids in backbone.codec.answers([*pair])) for pair in both]
        with torch.no_grad():
            self.base = backbone.score(self.prepared, self.chosen)
            self.base_rejected = backbone.score(self.prepared, self.rejected)


@dataclass(frozen=True, eq=False)
class Fitted:
    """Edits of many groups, one each, of one form.

    Attributes:
        form: One of :data:`FORMS`.
        layers: Edited layers.
        tensors: By name, the second axis is the group: ``p`` and ``n`` ``(L, G, d)``; ``v``
            ``(1, G, d)``; ``a`` ``(L, G, r, d_ff)`` and ``b`` ``(L, G, d, r)``.
        chosen: Bool ``(L, G)``: layers that a group's edit really has (``paper``).
        strength: Of both projections, where there are ``p`` and ``n``.
    """

    form: str
    layers: tuple[int, ...]
    tensors: dict[str, Tensor]
    chosen: Tensor | None = None
    strength: float = 1.0

    @property
    def n(self) -> int:
        """Number of groups."""
        return int(next(iter(self.tensors.values())).shape[1])

    @property
    def parameters(self) -> float:
        """Numbers of one group's edit, mean over groups."""
        count = sum(value[:, 0].numel() for value in self.tensors.values())
        share = 1.0 if self.chosen is None else float(self.chosen.double().mean())
        return count * share

    def rows(self, groups: Sequence[int] | Tensor, positions: str = "last") -> AnyEdit:
        """The per-row edit of a batch whose rows are of these groups.

        Raises:
            UserError: A LoRA, which is no edit of outputs; see :meth:`weights`.
        """
        at = torch.as_tensor(groups, dtype=torch.long)
        tensors = {name: value[:, at] for name, value in self.tensors.items()}
        if self.form == "lora":
            raise UserError("A LoRA changes weights; ask for its weights.")
        if "v" in tensors:
            return AffineEdit.adding(self.layers, tensors["v"], positions=positions)
        site = "block_out" if self.form == "pair_block" else "mlp_out"
        gone = None if self.chosen is None else ~self.chosen[:, at]
        return Edit(self.layers, tensors["p"], tensors["n"], alpha_p=self.strength,
                    alpha_n=self.strength, site=site, positions=positions,
                    identity=gone)  # fmt: skip

    def weights(self, group: int, backbone: HFBackbone) -> WeightEdit:
        """One group's LoRA as an edit of weights."""
        names = _projections(backbone)
        a, b = self.tensors["a"], self.tensors["b"]
        return WeightEdit("LoRA", tuple(
            Change(names[layer], b[row, group], a[row, group])
            for row, layer in enumerate(self.layers)
        ))  # fmt: skip


def _projections(backbone: HFBackbone) -> list[str]:
    row = model_family(backbone.model.config.model_type)
    if row.experts or row.flat:
        raise UserError(
            f"The LoRA of this study needs one plain MLP output projection per layer, which "
            f"{backbone.name} lacks; leave lora out for it."
        )
    return [row.projection.format(i=layer) for layer in range(backbone.n_layers)]


def _started(backbone: HFBackbone, form: str, groups: int, recipe: Recipe) -> Fitted:
    """The start of a form, the same for every group."""
    generator = torch.Generator().manual_seed(recipe.seed)
    layers, d = tuple(range(backbone.n_layers)), backbone.d

    def spread(one: Tensor) -> Tensor:
        return one[:, None].repeat(1, groups, *[1] * (one.dim() - 1))

    if form == "vector":
        return Fitted(form, (recipe.layer,), {"v": torch.zeros(1, groups, d)})
    if form == "lora":
        names = _projections(backbone)
        wide = int(backbone.model.get_submodule(names[0]).in_features)
        a = torch.randn(len(layers), RANK, wide, generator=generator) / wide**0.5
        b = torch.zeros(len(layers), d, RANK)
        return Fitted(form, layers, {"a": spread(a), "b": spread(b)})
    if form not in ("pair", "pair_block"):
        raise UserError(f"{form!r} is not fitted by steps; choose one of {', '.join(LEARNED)}.")
    theta = torch.randn(2, len(layers), d, generator=generator)
    theta = theta / theta.norm(dim=-1, keepdim=True)
    tensors = {"p": spread(theta[0]), "n": spread(theta[1])}
    return Fitted(form, layers, tensors, strength=recipe.strength)


@contextmanager
def row_lora(backbone: HFBackbone, fitted: Fitted, rows: Tensor) -> Iterator[None]:
    """Every row of the batch gets its own group's low-rank change; carries gradients."""
    handles = []
    for row, name in enumerate(_projections(backbone)):
        a, b = fitted.tensors["a"][row, rows], fitted.tensors["b"][row, rows]

        def hook(
            _module: nn.Module, inputs: Any, output: Tensor, a: Tensor = a, b: Tensor = b
        ) -> Tensor:
            added = inputs[0].to(a) @ a.mT @ b.mT
            return output + added.to(output.dtype)

        handles.append(backbone.model.get_submodule(name).register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scores(
    backbone: HFBackbone, read: Prepared, answers: Sequence[str], fitted: Fitted, rows: Tensor,
    under: AffineEdit | None, sign: float,
) -> Tensor:  # fmt: skip
    """log p of answers under each row's edit, ``(B,)`` nats; carries gradients to it."""
    if fitted.form == "lora":
        parts, order = [], []
        for places, batch in backbone.in_turn(read):
            with row_lora(backbone, fitted, rows[places]):
                parts.append(backbone.score(batch, [answers[at] for at in places]))
            order += places
        return torch.cat(parts)[torch.tensor(order).argsort()]
    edit = fitted.rows(rows)
    if sign != 1 and isinstance(edit, AffineEdit):
        edit = edit.scaled(sign)
    if under is not None:
        edit = AffineEdit.sequence(under.rows(rows), edit)
    return backbone.score(read, answers, edit=edit)


def fit_many(
    lessons: Lessons, groups: Sequence[Sequence[int]], form: str, recipe: Recipe,
    under: AffineEdit | None = None, progress: Progress | None = None,
) -> Fitted:  # fmt: skip
    """One edit per group of lessons.

    Args:
        lessons: Of everybody.
        groups: Places of lessons, per group; at least one each.
        form: One of :data:`LEARNED`.
        recipe: How.
        under: An edit per group that acts before the one that is fitted, and stays as it is.
        progress: Told of every step.

    Raises:
        UserError: A group without a lesson, or a form that is not learned by steps.
    """
    empty = [at for at, places in enumerate(groups) if not places]
    if empty:
        raise UserError(f"Group {empty[0]} has no lesson to fit on; leave it out.")
    backbone = lessons.backbone
    started = _started(backbone, form, len(groups), recipe)
    learned = {name: value.clone().requires_grad_() for name, value in started.tensors.items()}
    fitted = replace(started, tensors=learned)
    adam = torch.optim.Adam(list(learned.values()), lr=recipe.rate)
    order = [torch.Generator().manual_seed(7919 * recipe.seed + at) for at in range(len(groups))]
    waiting: list[list[int]] = [[] for _ in groups]
    signs = torch.Generator().manual_seed(recipe.seed)
    for _ in range(recipe.steps):
        places, owners = list[int](), list[int]()
        for at, own in enumerate(groups):
            if len(waiting[at]) < min(recipe.batch, len(own)):
                shuffled = torch.randperm(len(own), generator=order[at]).tolist()
                waiting[at] = [own[place] for place in shuffled]
            taken = waiting[at][: recipe.batch]
            waiting[at] = waiting[at][recipe.batch :]
            places += taken
            owners += [at] * len(taken)
        sign = 1.0
        if form == "vector":
            sign = 1.0 if torch.rand((), generator=signs) < 0.5 else -1.0
        adam.zero_grad()
        for loss in _losses(lessons, fitted, places, torch.tensor(owners), under, sign, recipe):
            torch.autograd.backward(loss)
        adam.step()
        if progress is not None:
            progress.advance(1)
    done = {name: value.detach() for name, value in learned.items()}
    return replace(started, tensors=done)


def _losses(
    lessons: Lessons, fitted: Fitted, places: list[int], owners: Tensor,
    under: AffineEdit | None, sign: float, recipe: Recipe,
) -> Iterator[Tensor]:  # fmt: skip
    """Parts of the sum over groups of each group's mean loss, nats, as many rows as have room."""
    n, differs = fitted.n, lessons.differs[places].bool()
    count, counted = (
        torch.zeros(n).index_add(0, some, torch.ones(len(some)))
        for some in (owners, owners[differs])
    )
    longest = max(lessons.tokens[place] for place in places)
    width = lessons.backbone.model.config.get_text_config().vocab_size
    room = max(1, _GRAPH // (4 * longest * width))
    for start in range(0, len(places), room):
        part = slice(start, start + room)
        loss = _loss(
            lessons, fitted, places[part], owners[part], under, sign, recipe,
            count[owners[part]], counted[owners[part]],
        )  # fmt: skip
        if loss.requires_grad:  # a vector learns nothing of a lesson with one answer
            yield loss


def _loss(
    lessons: Lessons, fitted: Fitted, places: list[int], owners: Tensor,
    under: AffineEdit | None, sign: float, recipe: Recipe, count: Tensor, counted: Tensor,
) -> Tensor:  # fmt: skip
    """What rows add to the loss; ``count`` and ``counted`` are the rows of each row's group.

    The latter counts those alone whose two answers differ.
    """
    backbone = lessons.backbone
    differs, at = lessons.differs[places], torch.tensor(places)
    read = backbone.rows(lessons.prepared, places)
    words = [lessons.chosen[place] for place in places]
    chosen = _scores(backbone, read, words, fitted, owners, under, sign)
    some = differs.nonzero()[:, 0]
    total = chosen.new_zeros(())
    if len(some):
        other = backbone.rows(lessons.prepared, at[some].tolist())
        words = [lessons.rejected[place] for place in at[some].tolist()]
        rejected = _scores(backbone, other, words, fitted, owners[some], under, sign)
        margin = chosen[some] - rejected
        if fitted.form == "vector":  # BiPO: against the unedited model, in either direction
            plain = lessons.base[at[some]] - lessons.base_rejected[at[some]]
            margin = sign * BETA * (margin - plain)
        total = total - (logsigmoid(margin) / counted[some]).sum()
    if fitted.form != "vector" and recipe.leash:
        strain = (lessons.base[at] - chosen).clamp_min(0)
        total = total + recipe.leash * (strain / count).sum()
    return total


# --- without a gradient ---------------------------------------------------------------------------


def _read(
    lessons: Lessons, groups: Sequence[Sequence[int]], site: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Activations of both answers, ``(G, L, K, d)`` each, and which of them are there, ``(G, K)``.

    Only lessons whose answers differ have two; a group without any keeps a row that is not there.
    """
    own = [[place for place in places if bool(lessons.differs[place])] for places in groups]
    flat = [place for places in own for place in places]
    prompts = [lessons.lessons[place].prompt for place in flat]
    h_p, h_n = (
        lessons.backbone.activations(prompts, [said[place] for place in flat], site=site)
        for said in (lessons.chosen, lessons.rejected)
    )  # (L, N, d)
    width = max(map(len, own))
    shape = (len(own), h_p.shape[0], width, h_p.shape[2])
    p, n = h_p.new_zeros(shape), h_p.new_zeros(shape)
    there, start = torch.zeros(len(own), width, dtype=torch.bool), 0
    for group, places in enumerate(own):
        count = len(places)
        p[group, :, :count] = h_p[:, start : start + count]
        n[group, :, :count] = h_n[:, start : start + count]
        there[group, :count], start = True, start + count
    return p, n, there


@torch.no_grad()
def paper_edits(
    lessons: Lessons, groups: Sequence[Sequence[int]], settings: EditSettings
) -> Fitted:
    """SVD and CCS of every group's lessons, at the layers of its own elbow (equation 3, A5).

    A group with fewer than two different answers keeps no layer, so its rows stay unedited.
    """
    p, n, there = _read(lessons, groups, "mlp_out")
    able = (there.sum(dim=1) >= 2).nonzero()[:, 0]
    if not len(able):
        raise UserError("No group has two lessons with different answers; give more items.")
    layers = p.shape[1]
    mask = there[able][:, None].expand(-1, layers, -1)
    found = find_directions("paper", p[able], n[able], settings, mask=mask)
    d = p.shape[-1]
    theta = torch.zeros(2, layers, len(p), d)
    theta[0][:, able], theta[1][:, able] = (
        part.transpose(0, 1).float() for part in (found.theta_p, found.theta_n)
    )
    chosen = torch.zeros(layers, len(p), dtype=torch.bool)
    for row, group in enumerate(able.tolist()):
        kept = choose_layers(found.ccs_loss[row], settings.layers_rule, settings.layers_k)
        chosen[list(kept), group] = True
    return Fitted("paper", tuple(range(layers)), {"p": theta[0], "n": theta[1]}, chosen)


@torch.no_grad()
def mean_vectors(lessons: Lessons, groups: Sequence[Sequence[int]], layer: int) -> Fitted:
    """Authentic minus neutral activations of the block output, the mean added as it is.

    What is added behind the MLP is added to the residual stream, where the block output is read.
    """
    p, n, there = _read(lessons, groups, "block_out")
    weight = there.float() / there.sum(dim=1, keepdim=True).clamp_min(1)
    v = torch.einsum("gk,glkd->lgd", weight, p - n)
    return Fitted("mean", (layer,), {"v": v[layer : layer + 1].contiguous()})
