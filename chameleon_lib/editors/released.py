"""What the released code of the paper does differently from its text, each by a name of its own.

All are off by default. Those of the released code that have no switch: the judge's prompt (there is
no judge here), half precision in one editor alone, adapter dropout while testing, the product
question alone in the chat template, and subject positions from counts of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Released:
    """Switches to the released behaviour.

    Attributes:
        special_tokens: FT-L fits the tokenizer's special tokens along with the target.
        adalora: LoRA is AdaLoRA at its initial rank of 12, which nothing ever prunes.
        prompt_lost: The preference stands before the direct question alone, so that prompting
            equals zero-shot on all others.
        no_roll_back: With clusters of more than one variant a user's edit stays for the next user.
        prompt_leaks: The scored answer is the end of prompt and answer together, so where the
            answer is short the prompt is scored.
        gold_length: An answer to the direct question has as many tokens as the target.
        last_seconds: Seconds of a cluster are those of its last edit.
    """

    special_tokens: bool = False
    adalora: bool = False
    prompt_lost: bool = False
    no_roll_back: bool = False
    prompt_leaks: bool = False
    gold_length: bool = False
    last_seconds: bool = False


OURS = Released()


def as_released(**overrides: bool) -> Released:
    """All switches on, but for those given."""
    return Released(**{field.name: True for field in fields(Released)} | overrides)
