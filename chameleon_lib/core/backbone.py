"""What the core asks of a backbone, an embedder and a keeper, and the one decoding object.

The core never loads a model and opens no file: it receives objects that satisfy these protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from torch import Tensor, nn

from chameleon_lib.core.edit import AnyEdit
from chameleon_lib.errors import UserError

Family = Literal["decoder", "encoder-decoder"]
Pooling = Literal["last", "mean_answer", "mean_all"]
Reduce = Literal["sum", "mean"]
Unit = TypeVar("Unit")


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """How answers are decoded (A15); the default is greedy."""

    do_sample: bool = False  # sample from the softmax instead of taking the largest logit
    num_beams: int = 1  # beam width; more than 1 excludes sampling
    temperature: float | None = None  # divides the logits when sampling; None means 1
    # Seeds the sampling noise of every (prompt, step, token); the sample of a prompt does not
    # depend on how prompts are batched
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise UserError(f"decode_num_beams is {self.num_beams}; give 1 or more.")
        if self.do_sample and self.num_beams > 1:
            raise UserError("Sampling with beams is not offered; set decode_num_beams to 1.")
        if self.temperature is not None and (not self.do_sample or self.temperature <= 0):
            raise UserError("decode_temperature needs decode_do_sample and a value above 0.")


def precise(sha256: str, dtype: str) -> str:
    """The fingerprint of weights that compute in a precision."""
    return f"{sha256}@{dtype}"


def same_weights(one: str, other: str) -> bool:
    """Whether two fingerprints are of one model, in whatever precision either computes."""
    return one.partition("@")[0] == other.partition("@")[0]


class Prepared(Protocol):
    """Prompts whose unedited prefix was computed once; opaque, never changed by its uses."""

    def __len__(self) -> int: ...


class Backbone(Protocol):
    """A frozen language model; ``backbones.hf.HFBackbone`` is one and says more of each method.

    Prompts are given in their original order and results come back in it; how they are batched
    never changes a result beyond float rounding.
    """

    diagnostics: bool  # whether ``usage`` holds edit ratios as well

    @property
    def usage(self) -> Any: ...  # ``mean_ratios()`` of the latest call's edit, by layer

    @property
    def name(self) -> str: ...  # short, for tables

    @property
    def family(self) -> Family: ...

    @property
    def n_layers(self) -> int: ...  # decoder layers

    @property
    def d(self) -> int: ...  # width of the mlp_out and block_out sites

    @property
    def fingerprint(self) -> str:
        """SHA-256 that changes with the weights, the configuration or the tokenizer; where it is
        known, the precision that the model computes in stands behind it (:func:`precise`)."""

    @property
    def revision(self) -> str: ...  # of the model on the hub; empty for a local checkpoint

    def sites(self, site: str = "mlp_out") -> list[nn.Module]:
        """The modules whose output is read or edited, one per decoder layer (A1)."""

    def count_tokens(self, text: str) -> int:
        """Number of tokens the model reads for this prompt, chat template and BOS included."""

    def fits(self, prompt: str, max_new_tokens: int) -> bool:
        """Whether prompt and answer stay within the context limit (B9)."""

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        edit: AnyEdit | None = None,
        groups: Sequence[int] | None = None,
        decode: DecodeSettings | None = None,
    ) -> list[str]:
        """Answers, stripped; prompts of one group share their longest common token prefix."""

    def prepare(
        self,
        prompts: Sequence[str],
        *,
        groups: Sequence[int] | None = None,
        filed: bool = False,
    ) -> Prepared:
        """Tokenises, buckets and computes the unedited prefix once, as far as memory allows.

        ``filed``: beyond it, too, in a file.
        """

    def in_turn(self, prepared: Prepared) -> Iterable[tuple[list[int], Prepared]]:
        """Batch after batch: the numbers of its prompts, and itself read, until the next one."""

    def rows(self, prepared: Prepared, rows: Sequence[int]) -> Prepared:
        """Prepared prompts by number, in this order, as if they alone had been prepared."""

    def generate_prepared(
        self,
        prepared: Prepared,
        *,
        max_new_tokens: int,
        edit: AnyEdit | None = None,
        decode: DecodeSettings | None = None,
    ) -> list[str]:
        """``generate`` from a prefix that is already there."""

    def score(
        self,
        prepared: Prepared,
        answers: Sequence[str],
        *,
        edit: AnyEdit | None = None,
        reduce: Reduce = "sum",
    ) -> Tensor:
        """``log p(answer + EOS | prompt)`` in nats, ``(B,)``; carries gradients to the edit."""

    def divergence(
        self, prepared: Prepared, answers: Sequence[str], *, edit: AnyEdit, tokens: int
    ) -> Tensor:
        """What an edit does to the next token at the first ``tokens`` of each answer, ``(B, 2)``.

        KL(unedited || edited) in nats, and the share of the tokens at which the likeliest token is
        another one.
        """

    def score_many(
        self,
        prepared: Prepared,
        answers: Sequence[Sequence[str]],
        *,
        edit: AnyEdit | None = None,
        reduce: Reduce = "sum",
    ) -> list[Tensor]:
        """``score`` of several answers per prompt."""

    def activations(
        self,
        contexts: Sequence[str],
        answers: Sequence[str],
        *,
        pooling: Pooling = "last",
        site: str = "mlp_out",
    ) -> Tensor:
        """Pooled site outputs, no edit active, ``(n_layers, B, d)`` float32 (section 3.2)."""


class Embedder(Protocol):
    """A sentence embedder for history selection (eq. 1)."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit-length embeddings, ``(n, d_s)`` float32."""


class Keep(Protocol):
    """Keeps finished work under a key of all that decides it; ``kit.store.ArtifactStore`` does."""

    def get_or_compute(
        self,
        stage: str,
        inputs: Any,
        compute: Callable[[], Any],
        /,
        *,
        modules: Sequence[str] = (),
    ) -> Any:
        """The kept value of ``stage`` and ``inputs``, or the computed one.

        A value is JSON-able, or a dict of tensors, or ``{"json": ..., "tensors": {...}}``.
        ``modules`` name the code that computes it.
        """

    def map(
        self,
        stage: str,
        items: Iterable[Unit],
        compute_batch: Callable[[list[Unit]], Sequence[Any]],
        /,
        *,
        inputs: Any,
        key_of: Callable[[Unit], Any],
        batch_size: int = 32,
        label: str = "",
        modules: Sequence[str] = (),
    ) -> Iterable[Any]:
        """One value per item, computed in batches; ``key_of`` is what decides an item's value."""


class Unkept:
    """A :class:`Keep` that keeps nothing: every value is computed when it is asked for.

    Args:
        most: Items per batch, at most; bounds what is in memory beside the values.
    """

    def __init__(self, most: int = 64) -> None:
        self.most = most

    def get_or_compute(
        self, _stage: str, _inputs: Any, compute: Callable[[], Any], **_: Any
    ) -> Any:
        """The computed value."""
        return compute()

    def map(
        self,
        _stage: str,
        items: Iterable[Unit],
        compute_batch: Callable[[list[Unit]], Sequence[Any]],
        *,
        batch_size: int = 32,
        **_: Any,
    ) -> Iterator[Any]:
        """The computed values, a batch at a time."""
        units, size = list(items), min(batch_size, self.most)
        for start in range(0, len(units), size):
            yield from compute_batch(units[start : start + size])
