"""What an edit did: whether answers recall the preference, and what else has changed.

Judge-free. The primary score is whether the target is a substring of the answer, letter case aside;
beside it whether it stands there as whole words, and the F1 of its words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.batches import Batch, PreparedBatches, pad
from chameleon_lib.errors import UserError

NEW_TOKENS = 8  # of an answer, beyond its target's
_TALKS = 16  # dialogues in a batch
BREAKS = 1.5  # an edit that makes neutral text so many times as perplexing breaks the model
# Plain sentences of ours about nobody.
NEUTRAL = (
    "The river rises in the hills and runs slowly through three villages before it meets the sea.",
    "A bridge needs repairs when water has entered the small cracks of its concrete.",
    "In the morning the shop on the corner opens at seven and sells bread, milk and newspapers.",
    "Most plants turn their leaves towards the light and close them again at night.",
    "The train leaves from the second platform and stops at every station on its way north.",
    "Glass is made from sand that is melted in a very hot oven and then cooled with care.",
)
GENERAL = (
    "What is the capital of France?",
    "How many days are in a week?",
    "Which planet do we live on?",
    "Name a month of the year.",
)
# Talk of ours about nothing in particular, for what comes between a preference and its question.
FILLER = (
    ("How many minutes are in two hours?", "One hundred and twenty minutes."),
    ("What do bees make?", "Bees make honey and wax."),
    ("Is glass a metal?", "No, glass is not a metal."),
    ("What is the opposite of north?", "The opposite is south."),
    ("Which season comes after winter?", "Spring comes after winter."),
    ("What do we call frozen water?", "Frozen water is ice."),
    ("How many legs has a spider?", "A spider has eight legs."),
    ("Where does the sun rise?", "The sun rises in the east."),
    ("What is bread made of?", "Of flour, water and yeast."),
    ("How many sides has a square?", "A square has four sides."),
)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def recall(target: str, answer: str) -> dict[str, float]:
    """``substring``, ``word`` (whole words in a row) and ``f1`` of an answer, each in [0, 1]."""
    wanted, said = _words(target), _words(answer)
    shared = sum((Counter(wanted) & Counter(said)).values())
    total = len(wanted) + len(said)
    rows = (said[at : at + len(wanted)] for at in range(len(said) - len(wanted) + 1))
    return {
        "substring": float(target.casefold() in answer.casefold()),
        "word": float(any(row == wanted for row in rows)),
        "f1": 2 * shared / total if total else 0.0,
    }


def answer_room(backbone: HFBackbone, targets: Sequence[str]) -> int:
    """Tokens for every answer of a set: the longest target and some more, so none is told."""
    return max(len(ids) for ids in backbone.codec.answers(targets)) + NEW_TOKENS


def cut_to_gold(backbone: HFBackbone, answer: str, target: str) -> str:
    """The answer at the target's number of tokens: the released code's generation."""
    ids, size = (backbone.codec.answers([text])[0] for text in (answer, target))
    return str(backbone.codec.tokenizer.decode(ids[: len(size)], skip_special_tokens=True)).strip()


def with_leak(backbone: HFBackbone, prompt: str, answer: str, room: int) -> str:
    """The last ``room`` tokens of prompt and answer: what the released code scores."""
    ids = backbone.codec.prompts([prompt])[0] + backbone.codec.answers([answer])[0]
    return str(backbone.codec.tokenizer.decode(ids[-room:], skip_special_tokens=True)).strip()


def agreement(before: str, after: str) -> dict[str, float]:
    """``exact`` and ``words`` (share of places with the same word) of two answers, in [0, 1]."""
    one, other = before.split(), after.split()
    most = max(len(one), len(other))
    same = sum(a == b for a, b in zip(one, other, strict=False))
    return {"exact": float(before == after), "words": same / most if most else 1.0}


@torch.no_grad()
def perplexity(backbone: HFBackbone, texts: Sequence[str] = NEUTRAL) -> float:
    """Of plain texts, token by token; an encoder-decoder reads the first half of each."""
    tokenizer, device, model = backbone.codec.tokenizer, backbone.device, backbone.model
    value = backbone.codec.pad_id
    with backbone.lock:
        if backbone.family == "encoder-decoder":
            halves = [_halves(text) for text in texts]
            prepared = backbone.prepare([head for head, _ in halves])
            nats = -backbone.score(prepared, [rest for _, rest in halves]).sum()
            count = sum(len(ids) + 1 for ids in backbone.codec.answers([r for _, r in halves]))
            return float((nats / count).exp())
        rows = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        ids, mask = pad(rows, value=value, side="right", device=device)
        logp = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    logp = logp.log_softmax(dim=-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    real = mask[:, 1:].bool()
    return float((-logp[real].mean()).exp())


def _halves(text: str) -> tuple[str, str]:
    words = text.split()
    at = len(words) // 2
    return " ".join(words[:at]), " ".join(words[at:])


def dialogue_ids(backbone: HFBackbone, turns: Sequence[tuple[str, str]]) -> list[int]:
    """A dialogue (role, text) in tokens, up to the model's next turn.

    In the chat template where one is in use, else as "role: text" lines with the last one bare.
    """
    if backbone.codec.chat:
        return backbone.codec.dialogue(turns)
    lines = [f"{role}: {text}" for role, text in turns[:-1]]
    return backbone.codec.prompts(["\n".join([*lines, turns[-1][1]])])[0]


def talk(
    question: str, turns: int, *, before: str = "", reminder: str = ""
) -> list[tuple[str, str]]:
    """The question after so many turns of :data:`FILLER`.

    Args:
        before: Said by the user before everything else, and acknowledged.
        reminder: Put before the question, in the same turn.

    Raises:
        UserError: More turns than there are.
    """
    if not 0 <= turns <= len(FILLER):
        raise UserError(f"turns is {turns}; there are 0 to {len(FILLER)} turns of filler.")
    found = [("user", before), ("assistant", "Thank you, I will keep that in mind.")]
    found = found if before else []
    for asked, said in FILLER[:turns]:
        found += [("user", asked), ("assistant", said)]
    return [*found, ("user", f"{reminder} {question}".strip())]


def answer_talks(
    backbone: HFBackbone, talks: Sequence[Sequence[tuple[str, str]]], room: int
) -> list[str]:
    """Greedy answers of at most ``room`` tokens to dialogues, stripped.

    Raises:
        UserError: A dialogue beyond the context limit; none is cut.
    """
    ids = [dialogue_ids(backbone, turns) for turns in talks]
    for at, row in enumerate(ids):
        backbone.check_length(len(row), room, f"Dialogue {at}")
    # Talks of as many turns share their beginning, which is read once for a batch of them.
    lengths = dict.fromkeys(sorted(len(turns) for turns in talks))
    of_length = [[at for at, turns in enumerate(talks) if len(turns) == n] for n in lengths]
    parts = [
        rows[start : start + _TALKS] for rows in of_length for start in range(0, len(rows), _TALKS)
    ]
    batches = [Batch(rows, [ids[at] for at in rows], [0] * len(rows)) for rows in parts]
    return backbone.generate_prepared(PreparedBatches(batches), max_new_tokens=room)
