"""A frozen model with its text conventions and sites; what a family must add to it."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from chameleon_lib.backbones.batches import TOKEN_BUDGET, Batch, EditUsage, ReadInputs
from chameleon_lib.backbones.families import model_family, site_modules
from chameleon_lib.backbones.filed import free_memory
from chameleon_lib.backbones.prefix import Prefix
from chameleon_lib.backbones.text import TextCodec
from chameleon_lib.core.backbone import Family
from chameleon_lib.core.edit import AnyEdit, EditHook
from chameleon_lib.errors import UserError

_FEW_TOKENS = 4096
_SHARE = 32  # of the free memory; more of it would save little, since nothing is read often

M = TypeVar("M", bound="FrozenModel")
P = ParamSpec("P")
T = TypeVar("T")


def alone(method: Callable[Concatenate[M, P], T]) -> Callable[Concatenate[M, P], T]:
    """Waits until no other thread runs the model: a hook acts on every call, whoever makes it."""

    @wraps(method)
    def waiting(self: M, /, *args: P.args, **named: P.kwargs) -> T:
        with self.lock:
            return method(self, *args, **named)

    return waiting


def input_device(model: Any) -> torch.device:
    """Where a model takes its tokens, also if a device map left its weights elsewhere."""
    embeddings = model.get_input_embeddings()
    device: torch.device = next(embeddings.parameters()).device
    if device.type == "meta":  # kept on disk and brought in for every call
        device = torch.device(embeddings._hf_hook.execution_device)
    return device


class FrozenModel(ABC):
    """A frozen Hugging Face model, its tokenizer and its edit sites.

    Args:
        model: The model, in evaluation mode.
        codec: Its text conventions.
        name: Short name for tables.
        fingerprint: SHA-256 of what was loaded, with the precision it computes in.

    Attributes:
        stored_dtype: Precision in which the checkpoint keeps its weights, or the one that was asked
            for; what is made of them is kept in it, too.
        usage: Hook counts of the latest call; empty if nothing was edited in it.
        diagnostics: Set to True to collect edit ratios in ``usage``; costs time.
        prefix_bytes: Memory that one ``prepare`` may spend on prefixes, with the same results; None
            for a share of what is free.
    """

    family: Family

    def __init__(self, model: Any, codec: TextCodec, *, name: str, fingerprint: str) -> None:
        self.model, self.codec = model, codec
        self.name, self.fingerprint = name, fingerprint
        self.device = input_device(model)
        self.stored_dtype: torch.dtype = model.dtype
        self.usage = EditUsage()
        self.diagnostics = False
        self.prefix_bytes: int | None = None
        self.lock = threading.RLock()  # of whoever runs the model
        model_family(model.config.model_type)  # an unknown family is refused before any work

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: all but the lock, which guards this model alone."""
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, lock=threading.RLock())

    @property
    @abstractmethod
    def n_layers(self) -> int:
        """Number of decoder layers."""

    @abstractmethod
    def prefill(self, prompts: Sequence[list[int]], groups: Sequence[int] | None) -> Prefix:
        """Everything before the first edited token, under whatever edit is active."""

    @abstractmethod
    def step(
        self,
        prefix: Prefix,
        cache: Cache,
        ids: Tensor,
        mask: Tensor,
        positions: Tensor,
        *,
        last_only: bool,
    ) -> Tensor:
        """Logits of further tokens ``(B, q)`` after a prefix; the cache grows by them."""

    @abstractmethod
    def read_inputs(self, contexts: list[list[int]], answers: list[list[int]]) -> ReadInputs:
        """The batch of one forward pass that reads activations."""

    @abstractmethod
    def read(self, inputs: dict[str, Tensor]) -> None:
        """That forward pass; hooks collect what it computes."""

    @abstractmethod
    def beam_inputs(self, prefix: Prefix, num_beams: int) -> dict[str, Any]:
        """Arguments of the library's ``generate`` that start from the prefix."""

    def prefix_of(self, batch: Batch, edit: AnyEdit | None) -> Prefix:
        """The prefix of a batch: stored, computed unedited, or (``all``) computed edited.

        ``edit`` is already cut to the rows of the batch.
        """
        if edit is not None and edit.positions == "all" and self.family == "decoder":
            with self.editing(edit if any(len(ids) > 1 for ids in batch.prompts) else None):
                # Members of a group share one edited start only if they share the edit.
                return self.prefill(batch.prompts, None if edit.per_row else batch.groups)
        # No inference mode: a stored prefix is used again with gradients.
        with torch.inference_mode(False), torch.no_grad():
            if batch.prefix is None:
                return self.prefill(batch.prompts, batch.groups)
            return batch.prefix if isinstance(batch.prefix, Prefix) else batch.prefix.load()

    @property
    def room(self) -> int:
        """Bytes that one ``prepare`` may keep in memory."""
        own = self.prefix_bytes
        return free_memory(self.device) // _SHARE if own is None else own

    @property
    def token_budget(self) -> int:
        """Tokens of a batch. On a CPU, larger ones of a wide model cost memory and save no time."""
        if self.device.type != "cpu":
            return TOKEN_BUDGET
        return min(TOKEN_BUDGET, max(_FEW_TOKENS, TOKEN_BUDGET * 128 // self.d))

    @property
    def context_limit(self) -> int | None:
        """Most tokens of prompt and answer together; None if none is declared, as by T5."""
        limit = getattr(self.text_config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def text_config(self) -> Any:
        """Configuration of the language model, also where it sits beside a vision tower."""
        return self.model.config.get_text_config()

    @property
    def revision(self) -> str:
        """Commit on the hub that the checkpoint was loaded from; empty for a local one."""
        return str(getattr(self.model.config, "_commit_hash", None) or "")

    @property
    def d(self) -> int:
        """Width of the ``mlp_out`` and ``block_out`` sites."""
        return int(self.text_config.hidden_size)

    def sites(self, site: str = "mlp_out") -> list[nn.Module]:
        """The modules of a site, one per decoder layer (A1)."""
        return site_modules(self.model, self.model.config.model_type, site, self.n_layers)

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a prompt, chat template and special tokens included."""
        return len(self.codec.prompts([text])[0])

    def fits(self, prompt: str, max_new_tokens: int) -> bool:
        """Whether prompt and answer stay within the context limit (B9)."""
        limit = self.context_limit
        return limit is None or self.count_tokens(prompt) + max_new_tokens <= limit

    def check_length(self, tokens: int, new: int, what: str) -> None:
        """Refuses what does not fit; the backbone itself never cuts a prompt (R7)."""
        limit = self.context_limit
        if limit is not None and tokens + new > limit:
            raise UserError(
                f"{what} has {tokens} tokens and needs {new} more, but {self.name} reads at most "
                f"{limit}; drop history items (prompts_overflow) or lower max_new_tokens."
            )

    @contextmanager
    def editing(self, edit: AnyEdit | None) -> Iterator[None]:
        """The edit is active inside the block; ``None`` leaves the model as it is."""
        if edit is None:
            yield
            return
        flat = edit.site == "mlp_out" and model_family(self.model.config.model_type).flat
        hook = EditHook(self.sites(edit.site), edit, flat=flat, diagnostics=self.diagnostics)
        try:
            with self.lock, hook:
                yield
        finally:
            hook.remove()  # again, should an interrupt have come while the block was left
        self.usage.add(hook)
