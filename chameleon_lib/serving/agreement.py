"""Does a form answer like the hook, and every user as if alone? Logits of a few prompts tell.

Every export is reloaded from its files and measured here before it counts. The one check catches a
wrong scale, lost keys, a forgotten bias, a foreign weight; the other (:func:`isolation`), which a
server runs before it answers, too, catches a user who is answered by another's edit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.batches import Batch
from chameleon_lib.core.affine import AffineEdit
from chameleon_lib.core.edit import AnyEdit
from chameleon_lib.core.task import ANSWER_CUE
from chameleon_lib.editors import WeightEdit
from chameleon_lib.errors import UserError

PROBES = tuple(
    f"{text}\n{ANSWER_CUE}"
    for text in (
        "Suppose you are a user with the following history:\n1. a robot learns to feel: sci-fi",
        "Now, given a new description: two friends rob a bank and laugh about it.",
        "Question: What is the rating score of the following review on a scale of 1 to 5?",
    )
)
NEW_TOKENS = 8
# Worst measured 8e-6 of the effect (T5); the largest logit changes set the scale of rounding.
FP32_BOUND = 2e-5
# Two orders of rounding differ by that share of the effect in half precision (T5: 0.06), beside
# what rounding does to logits of any edit.
_HALF_BOUND = 0.25


@dataclass(frozen=True, eq=False)
class View:
    """What a model does on some prompts.

    Attributes:
        logits: Per prompt ``(n, V)`` float64, at the last prompt token and the new tokens but the
            last; under the tokens that were forced, or else under its own greedy tokens.
        tokens: Per prompt the n most likely tokens.
    """

    logits: tuple[Tensor, ...]
    tokens: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Agreement:
    """A form beside the hook.

    Attributes:
        effect: Largest logit change the hook makes to the base.
        error: Largest logit difference between form and hook.
        bound: Most that was allowed; in half precision less than half the effect besides.
        same_tokens: Whether all greedy tokens agree.
        tokens: Number of tokens compared.
    """

    effect: float
    error: float
    bound: float
    same_tokens: bool
    tokens: int


@dataclass(frozen=True)
class Isolation:
    """Rows of several users in one batch beside each of them alone.

    Attributes:
        effect: Largest change that a user's edit makes to the base's logits, of the user whose
            edit makes the least.
        error: Largest difference of a row from the same prompt and user alone.
        bound: Most that was allowed.
        rows: Rows that were compared, in batches and in sequence.
    """

    effect: float
    error: float
    bound: float
    rows: int


# From prompts and the number of a user for each to the next token's logits ``(B, V)``, one batch.
Rows = Callable[[list[str], list[int]], Tensor]


@torch.no_grad()
def view(
    backbone: HFBackbone,
    prompts: Sequence[Sequence[int]],
    edit: AnyEdit | WeightEdit | None,
    *,
    forced: Sequence[Sequence[int]] | None = None,
    new_tokens: int = NEW_TOKENS,
) -> View:
    """Runs each prompt alone, with the cache, through the backbone's own steps.

    Args:
        backbone: The model; adapters that are active in it act.
        prompts: Token ids per prompt.
        edit: Applied by hooks, or None.
        forced: Tokens to feed after each prompt instead of the model's own.
        new_tokens: Tokens per prompt if none are forced.
    """
    if isinstance(edit, WeightEdit):
        with edit.active(backbone.model):
            return view(backbone, prompts, None, forced=forced, new_tokens=new_tokens)
    logits, tokens = [], []
    for at, ids in enumerate(prompts):
        own = None if forced is None else forced[at]
        prefix = backbone.prefix_of(Batch([0], [list(ids)], None), edit)
        cache, step = prefix.cache(), prefix.last
        position = prefix.lengths[:, None]
        steps = new_tokens if own is None else len(own)
        room = torch.ones(1, steps, dtype=torch.long, device=backbone.device)
        mask = torch.cat([prefix.mask, room], dim=1)
        rows: list[Tensor] = []
        with backbone.editing(edit):
            for t in range(steps):
                seen = mask[:, : prefix.mask.shape[1] + t + 1]
                out = backbone.step(prefix, cache, step, seen, position, last_only=True)
                rows.append(out[0, -1].double().cpu())
                token = int(rows[-1].argmax()) if own is None else own[t]
                step = torch.tensor([[token]], device=backbone.device)
                position = position + 1
        logits.append(torch.stack(rows))
        tokens.append(tuple(int(row.argmax()) for row in rows))
    return View(tuple(logits), tuple(tokens))


def distance(one: View, other: View) -> float:
    """Largest absolute difference of logits."""
    pairs = zip(one.logits, other.logits, strict=True)
    return max(float((left - right).abs().max()) for left, right in pairs)


def compare(
    backbone: HFBackbone,
    edit: AnyEdit | WeightEdit,
    prompts: Sequence[str],
    form: Callable[[View], View],
    dtype: torch.dtype | None = None,
) -> Agreement:
    """Measures a form against the hook.

    Args:
        backbone: The base with the hook; outside ``form`` no adapter is active in it.
        edit: The edit.
        prompts: Prompts as texts; wrapped as the backbone wraps them.
        form: From the hook's view (for its tokens) to the form's, under the same tokens.
        dtype: Precision of the form, if it is not the backbone's.

    Raises:
        UserError: The form differs from the hook, or the edit moves these prompts too little to
            tell a right form from a wrong one. In half precision that is so where the form is
            further from the hook than half the effect: the bare base, and a form twice too
            strong, are as far from it as the whole effect.
    """
    ids = backbone.codec.prompts(list(prompts))
    hook = view(backbone, ids, edit)
    base = view(backbone, ids, None, forced=hook.tokens)
    effect = distance(hook, base)
    dtype = dtype or backbone.model.dtype
    half = dtype in (torch.float16, torch.bfloat16)
    bound = FP32_BOUND * max(1.0, effect)
    if half:
        top = max(float(row.abs().max()) for row in hook.logits)
        bound = _HALF_BOUND * effect + 8 * torch.finfo(dtype).eps * top
    elif effect <= 2 * bound:
        raise UserError(
            f"The edit moves the logits of the {len(prompts)} check prompts by {effect:.1e} only, "
            "too little to tell a right export from a wrong one; give prompts it acts on."
        )
    found = form(hook)
    if not distance(base, view(backbone, ids, None, forced=hook.tokens)) <= bound:
        raise UserError(
            "The base answers otherwise after the export was loaded beside it, so the export was "
            f"deleted; please report this with {backbone.name} and the versions of its libraries."
        )
    error = distance(hook, found)
    same = hook.tokens == found.tokens
    count = sum(len(row) for row in hook.tokens)
    result = Agreement(effect, error, bound, same, count)
    # Tokens of half precision test rounding, not the edit.
    if not error <= bound or (not same and not half):
        raise UserError(
            f"The reloaded export differs from the edit by {error:.1e} in the logits (allowed "
            f"{bound:.1e}, effect of the edit {effect:.1e}; greedy tokens "
            f"{'agree' if same else 'differ'}), so it was deleted; please report this with the "
            "model and the versions of its libraries."
        )
    # The bound of half precision grows with the logits, so a small effect may lie within it whole.
    if half and not error < effect / 2:
        raise UserError(
            f"The edit moves the logits of the {len(prompts)} check prompts by {effect:.1e} and "
            f"the reloaded export misses them by {error:.1e}, too little effect to prove an export "
            f"in {str(dtype).removeprefix('torch.')}; prove it in float32."
        )
    return result


# --- many users ---------------------------------------------------------------------------------


class _Aborted(Exception):
    """Ends a batch in the middle of the model, as a client that went away or a full memory does."""


def isolation(
    backbone: HFBackbone,
    rows: Rows,
    users: int,
    prompts: Sequence[str] = PROBES,
    dtype: torch.dtype | None = None,
) -> Isolation:
    """Runs users and the base interleaved in one batch, in sequence, and after an aborted batch.

    Args:
        backbone: The model; it is made to fail once, in its last layer.
        rows: What answers: user 0 is the bare base, 1 to ``users`` have an edit each.
        users: Users with an edit.
        prompts: Prompts as texts; every user asks each.
        dtype: Precision of what answers, if it is not the backbone's.

    Raises:
        UserError: A row depends on its neighbours or on what ran before it, an abort did not get
            through, or the edits move these prompts too little to tell one user from another.
    """
    asked = [(prompt, user) for prompt in prompts for user in range(users + 1)]

    def batch(order: Sequence[int]) -> dict[int, Tensor]:
        found = rows([asked[at][0] for at in order], [asked[at][1] for at in order])
        return {at: found[place] for place, at in enumerate(order)}

    every = list(range(len(asked)))
    alone = {at: row for one in every for at, row in batch([one]).items()}
    seen = [batch(every), batch(every[::-1])]
    with _failing(backbone) as failed:
        try:
            batch(every)
        except _Aborted:
            failed.append(True)
    if len(failed) != 1:
        raise UserError(
            f"A batch of {backbone.name} was to be aborted in its last layer and was not, so "
            "nothing is known of what an abort leaves behind; please report this with the model."
        )
    # The bare base first: what an abort leaves behind would answer the very next call.
    bare = [at for at in every if asked[at][1] == 0]
    seen += [batch(bare), batch(every)]
    seen += [batch([at]) for at in every]
    effects = [
        max(_apart(alone[at], alone[at - asked[at][1]]) for at in every if asked[at][1] == user)
        for user in range(1, users + 1)
    ]
    effect = min(effects)
    error = max(_apart(row, alone[at]) for found in seen for at, row in found.items())
    dtype = dtype or backbone.model.dtype
    half = dtype in (torch.float16, torch.bfloat16)
    bound = FP32_BOUND * max(1.0, *effects)
    if half:
        top = max(float(row.abs().max()) for row in alone.values())
        bound = _HALF_BOUND * effect + 8 * torch.finfo(dtype).eps * top
    if effect <= 2 * (error if half else bound):
        raise UserError(
            f"The edits move the next token's logits of the {len(prompts)} check prompts by "
            f"{effect:.1e} only, too little to tell one user's rows from another's; give prompts "
            "they act on."
        )
    if not error <= bound:
        raise UserError(
            f"A row of a batch of several users differs by {error:.1e} in the logits from the same "
            f"user alone (allowed {bound:.1e}, effect of the edits {effect:.1e}), so nothing is "
            "served; please report this with the model and the versions of its libraries."
        )
    return Isolation(effect, error, bound, sum(map(len, seen)))


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@contextmanager
def _failing(backbone: HFBackbone) -> Iterator[list[bool]]:
    """The model fails in its last layer inside the block."""

    def fail(*_: object) -> None:
        raise _Aborted

    handle = backbone.sites()[-1].register_forward_pre_hook(fail)
    try:
        yield []
    finally:
        handle.remove()


def hook_rows(backbone: HFBackbone, edits: Sequence[AnyEdit]) -> Rows:
    """The per-row edit as :func:`isolation` asks it; user 0 is the bare base."""

    @torch.no_grad()
    def rows(prompts: list[str], users: list[int]) -> Tensor:
        own = [None if user == 0 else edits[user - 1] for user in users]
        edit = AffineEdit.stack(own) if any(users) else None
        ids = backbone.codec.prompts(prompts)
        prefix = backbone.prefix_of(Batch(list(range(len(ids))), ids, None), edit)
        mask = torch.cat([prefix.mask, torch.ones_like(prefix.last)], dim=1)
        with backbone.editing(edit):
            out = backbone.step(
                prefix, prefix.cache(), prefix.last, mask, prefix.lengths[:, None], last_only=True
            )
        return out[:, -1].double().cpu()

    return rows
