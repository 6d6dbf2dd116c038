"""A GGUF adapter beside the GGUF base that serves it: do they belong together, and what comes out.

llama.cpp refuses an adapter of another architecture, name or shape with a log line, which its
Python binding does not pass on; one of other weights of the same shapes it loads without a word.
On a base in float the answers are the hook's. On a quantised one llama.cpp rounds what goes into
each product, and the weights may be others than those of the export: logits then agree up to the
base's own rounding, and answers can differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.edit import AnyEdit
from chameleon_lib.errors import UserError
from chameleon_lib.serving.agreement import NEW_TOKENS, PROBES, View, distance, view
from chameleon_lib.serving.gguf_adapter import (
    WEIGHTS_KEY,
    gguf_value,
    open_gguf,
    weights_digest,
)

# Share of A that the base does not explain: 0 to 0.002 in float, 0.08 in 4 bits, 0.98 for others.
_OTHER = 0.5


@dataclass(frozen=True)
class Fit:
    """An adapter that a base takes.

    Attributes:
        architecture: Of both, as GGUF names it.
        tensors: Number of edited matrices.
        types: How the base stores them.
        same: Whether they are, bit for bit, those that the adapter was compiled from.
        rest: Largest share of a factor A that these matrices do not explain: their rounding.
    """

    architecture: str
    tensors: int
    types: tuple[str, ...]
    same: bool
    rest: float

    def __str__(self) -> str:
        said = (
            f"The adapter fits: {self.architecture}, {self.tensors} matrices in "
            f"{', '.join(self.types)}, names and shapes agree"
        )
        said += (
            ", and the weights are those it was compiled from"
            if self.same
            else f"; the weights are near those it was compiled from, {self.rest:.1%} of its "
            "factors is not theirs"
        )
        if self.same and set(self.types) <= {"F32", "F16", "BF16"}:
            return f"{said}."
        return f"{said}; answers can differ from the hook's, which --served measures."


def check_adapter(adapter: Path, base: Path) -> Fit:
    """Compares architecture, tensor names, shapes and weights of two files.

    The factors hold the base's own matrices: A is C Bᵀ W for a small matrix C. So what of A no such
    product explains says how far W is from the weights of the export.

    Raises:
        UserError: The adapter belongs to another base, or a file is none of its kind.
    """
    import gguf

    lora, model = open_gguf(adapter), open_gguf(base)
    if (gguf_value(lora, "general.type"), gguf_value(lora, "adapter.type")) != ("adapter", "lora"):
        raise UserError(f"{adapter} is no LoRA adapter; give the adapter.gguf of an export.")
    if gguf_value(model, "general.type") == "adapter":
        raise UserError(f"{base} is an adapter; give --base the model that serves it.")
    names = [gguf_value(reader, "general.architecture") for reader in (lora, model)]
    if names[0] != names[1]:
        raise UserError(
            f"{adapter} is of the architecture {names[0]}, {base} of {names[1]}; export the edit "
            "for this base."
        )
    held = {tensor.name: tensor for tensor in model.tensors}
    factors = {tensor.name: tensor for tensor in lora.tensors}
    edited = sorted({name.rpartition(".lora_")[0] for name in factors})
    weights, rests = {}, []
    for name in edited:
        pair = [factors[key] for side in "ab" if (key := f"{name}.lora_{side}") in factors]
        if name not in held or len(pair) < 2:
            where = base if name not in held else adapter
            raise UserError(f"{where} does not hold {name} whole; export the edit for this base.")
        a, b = (np.array(factor.data, dtype=np.float64) for factor in pair)  # (r, d_ff), (d, r)
        shape = tuple(int(size) for size in reversed(held[name].shape))  # (d, d_ff)
        if (b.shape[0], a.shape[1]) != shape or a.shape[0] != b.shape[1]:
            raise UserError(
                f"{name} is {shape} in {base}, and the factors in {adapter} are {b.shape} and "
                f"{a.shape}; export the edit for this base."
            )
        try:
            w = gguf.quants.dequantize(held[name].data, held[name].tensor_type)
        except NotImplementedError:
            kind = held[name].tensor_type.name
            raise UserError(f"{base} keeps {name} as {kind}, which cannot be read here.") from None
        weights[name] = torch.tensor(w, dtype=torch.float32)
        rests.append(_unexplained(a, b, w.astype(np.float64)))
    rest = max(rests, default=1.0)
    if not rest < _OTHER:
        raise UserError(
            f"{base} holds other weights than {adapter} was compiled from ({rest:.0%} of its "
            "factors is not theirs); export the edit for this base."
        )
    return Fit(
        architecture=str(names[0]),
        tensors=len(edited),
        types=tuple(sorted({held[name].tensor_type.name for name in edited})),
        same=gguf_value(lora, WEIGHTS_KEY) == weights_digest(weights),
        rest=rest,
    )


def _unexplained(a: np.ndarray, b: np.ndarray, w: np.ndarray) -> float:
    used = np.abs(b).max(axis=0) > 0  # of a padded or one-sided edit, the rows that act
    seen = (b[:, used].T @ w).T  # (d_ff, k)
    fitted, *_ = np.linalg.lstsq(seen, a[used].T, rcond=None)
    return float(np.linalg.norm(seen @ fitted - a[used].T) / np.linalg.norm(a[used]))


@dataclass(frozen=True)
class Served:
    """What llama.cpp makes of a base and an adapter, beside base and hook under the same tokens.

    Attributes:
        correlation: Of the logit changes by adapter and by hook, all tokens together.
        slope: Of the adapter's change on the hook's.
        edited: Largest logit difference with the edit.
        plain: The same without: the rounding of the base file.
        edited_answers: Greedy answers of the hook that the served model gives, too.
        plain_answers: The same without the edit.
        prompts: Number of prompts.
    """

    correlation: float
    slope: float
    edited: float
    plain: float
    edited_answers: int
    plain_answers: int
    prompts: int

    def __str__(self) -> str:
        n = self.prompts
        return (
            f"Served by llama.cpp: change of the logits beside the hook's, correlation "
            f"{self.correlation:.4f}, slope {self.slope:.3f}; largest difference {self.edited:.3f} "
            f"with the edit, {self.plain:.3f} without; same answers to {self.edited_answers} of "
            f"{n} prompts with the edit, {self.plain_answers} of {n} without."
        )


def served_agreement(
    backbone: HFBackbone,
    edit: AnyEdit,
    adapter: Path,
    base: Path,
    *,
    prompts: tuple[str, ...] = PROBES,
    new_tokens: int = NEW_TOKENS,
) -> Served:
    """Runs the served file without and with the adapter, through llama-cpp-python.

    Raises:
        UserError: The adapter is not of this base, the base is an encoder-decoder or has another
            vocabulary, or llama-cpp-python is not installed.
    """
    check_adapter(adapter, base)  # llama-cpp-python would go on with a missing adapter
    if backbone.family != "decoder":
        raise UserError("--served runs decoders alone; run an encoder-decoder in llama-cli itself.")
    try:
        from llama_cpp import Llama
    except ImportError:
        raise UserError(
            "--served needs llama-cpp-python, which is not installed here; install it (it is "
            "compiled, some ten minutes) or leave --served out."
        ) from None
    ids = backbone.codec.prompts(list(prompts))

    def run(lora: Path | None, forced: tuple[tuple[int, ...], ...]) -> View:
        longest = max(len(one) + len(two) for one, two in zip(ids, forced, strict=True))
        model = Llama(
            str(base), lora_path=None if lora is None else str(lora), logits_all=True,
            n_ctx=longest, n_batch=longest, n_ubatch=longest, type_k=0, type_v=0, verbose=False,
        )  # fmt: skip
        words = backbone.model.get_output_embeddings().weight.shape[0]
        if model.n_vocab() != words:
            raise UserError(
                f"{base} has {model.n_vocab()} tokens, {backbone.name} {words}; give the GGUF file "
                "of this base."
            )
        logits = []
        for prompt, answer in zip(ids, forced, strict=True):
            model.reset()
            model.eval([*prompt, *answer[:-1]])
            rows = np.array(model.scores[len(prompt) - 1 : model.n_tokens], dtype=np.float64)
            logits.append(torch.from_numpy(rows))
        model.close()
        tokens = tuple(tuple(row.argmax(dim=-1).tolist()) for row in logits)
        return View(tuple(logits), tokens)

    hook = view(backbone, ids, edit, new_tokens=new_tokens)
    bare = view(backbone, ids, None, forced=hook.tokens)
    own = view(backbone, ids, None, new_tokens=new_tokens)
    edited, plain = run(adapter, hook.tokens), run(None, hook.tokens)
    plain_own = run(None, own.tokens)
    wanted = torch.cat([one - two for one, two in zip(hook.logits, bare.logits, strict=True)])
    found = torch.cat([one - two for one, two in zip(edited.logits, plain.logits, strict=True)])
    pair = torch.stack([wanted.flatten(), found.flatten()])
    covariance = torch.cov(pair)

    def equal(one: View, two: View) -> int:
        return sum(left == right for left, right in zip(one.tokens, two.tokens, strict=True))

    return Served(
        correlation=float(torch.corrcoef(pair)[0, 1]),
        slope=float(covariance[0, 1] / covariance[0, 0]),
        edited=distance(hook, edited),
        plain=distance(bare, plain),
        edited_answers=equal(hook, edited),
        plain_answers=equal(own, plain_own),
        prompts=len(ids),
    )
