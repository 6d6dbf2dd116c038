"""aLoRA: the exact twin of an edit that starts at the last prompt token (positions ``last``).

An aLoRA acts from its invocation tokens on, and its readers look for the last place in the prompt
where they stand. That is the last prompt token, and the twin is exact, only if the sequence is one
token and every prompt ends in it: "Your answer:" ends in its colon, a chat template in its marker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.errors import UserError
from chameleon_lib.profiles.agreement import View


def invocation_token(backbone: HFBackbone, prompts: Sequence[str]) -> int:
    """The token that all prompts end in.

    Args:
        backbone: Tokenises, and wraps in its chat template.
        prompts: Prompts as they will be served.

    Raises:
        UserError: They end in different tokens, so no single token starts the edit.
    """
    last = [ids[-1] for ids in backbone.codec.prompts(list(prompts))]
    if len(set(last)) != 1:
        shown = ", ".join(
            repr(text) for text in backbone.codec.tokenizer.convert_ids_to_tokens(sorted(set(last)))
        )
        raise UserError(
            f"The prompts end in different tokens ({shown}), so no single invocation token marks "
            "where the edit starts; end every prompt in the same token, or use the hook."
        )
    return last[0]


@torch.no_grad()
def alora_view(
    backbone: HFBackbone, model: Any, prompts: Sequence[Sequence[int]], hook: View
) -> View:
    """What the active aLoRA does under the hook's tokens, and its own greedy tokens.

    Args:
        backbone: The base, with the adapter loaded in it.
        model: The ``PeftModel`` around it.
        prompts: Token ids per prompt.
        hook: The view to compare with; its tokens are fed.
    """
    logits, tokens = [], []
    for ids, forced in zip(prompts, hook.tokens, strict=True):
        prompt = torch.tensor([list(ids)], device=backbone.device)
        fed = torch.tensor([[*ids, *forced[:-1]]], device=backbone.device)
        # The answer may hold the invocation token too; the start is the prompt's end.
        out = model(input_ids=fed, alora_offsets=[len(forced)]).logits
        logits.append(out[0, -len(forced) :].double().cpu())
        made = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=len(forced),
            do_sample=False,
            eos_token_id=list(backbone.codec.eos_ids),
            pad_token_id=backbone.codec.pad_id,
        )
        own = made[0, prompt.shape[1] :].tolist()
        # Its own decoding stops at EOS; beyond that the fed tokens are all there is.
        tokens.append((*own, *logits[-1][len(own) :].argmax(dim=-1).tolist()))
    return View(tuple(logits), tuple(tokens))
