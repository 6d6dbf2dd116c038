"""Unedited text by vLLM: insights and pairs are most of what a run writes, and need no hook.

vLLM batches continuously and keeps what prompts share (``enable_prefix_caching``): both prompts of
a user begin with the same history. It holds a second copy of the weights, in its own share of the
GPU. It gets the very token ids that the backbone itself would read, stops at the same tokens and
its answers are cut and decoded by the same code, so that both engines agree up to rounding; since
rounding can flip a word, the engine is part of the fingerprint. Greedy decoding only.

Optional: nothing here is imported unless a run profile asks for it, and vLLM is not among the
kit's dependencies. Encoder-decoders are not served by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch

from chameleon_lib.backbones.backbone import HFBackbone
from chameleon_lib.backbones.batching import pad
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.protocols import DecodeSettings
from chameleon_lib.errors import UserError

GPU_SHARE = 0.45  # of the GPU's memory; the rest is the backbone's, which reads and edits
_WANTED = "set generator to 'transformers' in the run profile"


def vllm_module() -> Any:
    """The package.

    Raises:
        UserError: It is not installed, or does not fit what is.
    """
    try:
        return import_module("vllm")
    except ImportError as error:
        raise UserError(
            f"The profile writes with vLLM, which cannot be imported here ({error}); install it on "
            f"a machine with a GPU, or {_WANTED}."
        ) from error


class VllmWriter:
    """A backbone that writes unedited text by vLLM; all else is the backbone's own.

    Args:
        backbone: The frozen model, a decoder, with its text conventions.
        source: Folder or hub id of the same checkpoint.
        dtype: Precision of the weights, as the backbone was loaded.
        gpu_share: Share of the GPU's memory that vLLM may use.

    Raises:
        UserError: No vLLM, an encoder-decoder, or a model that vLLM cannot load.
    """

    def __init__(
        self, backbone: HFBackbone, source: str, *, dtype: str, gpu_share: float = GPU_SHARE
    ) -> None:
        if backbone.family != "decoder":
            raise UserError(
                f"{backbone.name} is an encoder-decoder, which vLLM does not serve; {_WANTED}."
            )
        package = vllm_module()
        self._backbone, self._package = backbone, package
        version = getattr(package, "__version__", "unknown")
        words = f"{backbone.fingerprint} vllm {version} {dtype}"
        self.fingerprint = hashlib.sha256(words.encode()).hexdigest()
        try:
            self._engine = package.LLM(
                model=source,
                dtype=dtype,
                seed=0,
                enable_prefix_caching=True,
                gpu_memory_utilization=gpu_share,
            )
        except Exception as error:  # engines fail in many ways: memory, drivers, architectures
            reason = (str(error).strip() or type(error).__name__).split("\n")[0]
            raise UserError(
                f"vLLM cannot load {source} ({reason}); give it a larger GPU, or {_WANTED}."
            ) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        edit: Edit | None = None,
        groups: Sequence[int] | None = None,  # noqa: ARG002 - vLLM finds shared prefixes itself
        decode: DecodeSettings | None = None,
    ) -> list[str]:
        """Answers in the order of the prompts, stripped; as ``HFBackbone.generate`` without edit.

        Raises:
            ValueError: An edit, which needs the backbone's hooks.
            UserError: Sampling or beams, or a prompt that is empty or too long.
        """
        if edit is not None:
            raise ValueError("vLLM writes without an edit; ask the backbone itself.")
        chosen = decode or DecodeSettings()
        if chosen.do_sample or chosen.num_beams > 1:
            raise UserError(f"vLLM writes greedily here; for sampling and beams {_WANTED}.")
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}; give 1 or more.")
        tokens = self._backbone.prompt_tokens(prompts, max_new_tokens)
        if not tokens:
            return []
        codec = self._backbone.codec
        parameters = self._package.SamplingParams(
            temperature=0.0,
            max_tokens=max_new_tokens,
            stop_token_ids=list(codec.eos_ids),
            detokenize=False,
        )
        requests = [{"prompt_token_ids": ids} for ids in tokens]
        found = self._engine.generate(requests, parameters, use_tqdm=False)
        written = []
        for ids, request in zip(tokens, found, strict=True):
            if list(request.prompt_token_ids) != ids:
                raise RuntimeError("vLLM returned answers in another order than the prompts.")
            written.append(list(request.outputs[0].token_ids))
        rows, _ = pad(written, value=codec.eos_id, side="right", device=torch.device("cpu"))
        return codec.decode(rows)
