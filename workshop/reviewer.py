"""Train the reviewer, the small language model of the world of shared items.

``python -m workshop.reviewer``. It learns, on users and items that are drawn anew for every
example, to write a review of an item when its prompt *names* style words and rating, in a sentence
about the user or inside the blocks of past reviews; to write anybody's when nothing is named; to
say what is different in a review (DPL); and to sum up what a user's reviews have in common. Then it
is frozen: what soft prompts tell it, it has never been told that way.

A run is fixed by (seed, steps), and needs one thread for some minutes.
"""

from __future__ import annotations

import json
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2
import torch
from torch import Tensor, nn
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from chameleon_lib.backbones.load import load_backbone
from chameleon_lib.difference import KINDS, Item, Review
from chameleon_lib.difference import world as w
from chameleon_lib.kit.command_line import Parser, positive
from chameleon_lib.kit.paths import package_dir, replace_text
from workshop import run_script
from workshop.models import word_tokenizer
from workshop.train import build_optimizers

OUT = package_dir() / "demo" / "reviewer-0"
SHARES = {"plain": 0.1, "told": 0.25, "blocks": 0.35, "compare": 0.15, "summarise": 0.15}
IGNORED = -100
WORDING = w.WorldWording()
MAX_PAST = 8
CONTEXT = 4096  # tokens; the training prompts have up to 200, real reviews need more


@dataclass(frozen=True)
class ReviewerSettings:
    """One training run."""

    seed: int = 0
    steps: int = 3000
    batch: int = 32
    lr: float = 4e-3
    warmup: int = 30
    hidden: int = 64
    layers: int = 3


def tokenizer() -> PreTrainedTokenizerFast:
    """All words of the world as pieces, with byte fallback for everything else."""
    prompts = "Item graded Past User Review Mine Others Difference Differences Summary".split()
    words = [*w.STYLE, *w.CONTENT, *w.NAMES, *w.GRADES, *w.RATINGS, *w.BIASES.values(), *prompts]
    return word_tokenizer(sorted(set(words)))


def model(settings: ReviewerSettings, vocabulary: int) -> MistralForCausalLM:
    """Freshly initialised; some two hundred thousand weights."""
    torch.manual_seed(settings.seed)
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=vocabulary, hidden_size=settings.hidden,
            intermediate_size=2 * settings.hidden, num_hidden_layers=settings.layers,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=CONTEXT,
            sliding_window=None, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1,
            bos_token_id=2,
        )
    )  # fmt: skip


def drawn(rng: random.Random) -> str:
    """A kind of prompt, by its share."""
    return rng.choices(list(SHARES), list(SHARES.values()))[0]


def example(rng: random.Random, kind: str) -> tuple[str, str]:
    """Prompt and answer of a new user on new items."""
    taste = w.draw_taste(rng)
    names = rng.sample(w.NAMES, 1 + rng.randint(1 if kind == "blocks" else 5, MAX_PAST))
    (item, grade), *others = [w.draw_item(rng, name, name) for name in names]
    own = _review(rng, item, grade, taste)
    past = [(_review(rng, *other, taste), *other) for other in others]
    if kind == "compare":
        peers = [_review(rng, item, grade, w.draw_taste(rng)) for _ in range(4)]
        return WORDING.compare(own, peers, item), _different(own, grade)
    if kind == "summarise":
        reviews, items, _ = (list(part) for part in zip(*past, strict=True))
        told = [_different(review, grade) for review, _, grade in past]
        prompt = WORDING.summarise(told if rng.random() < 0.5 else [], reviews, items)
        return prompt, _summary(past)
    parts = [WORDING.item(item)]
    if kind == "told":
        words = list(taste.style)
        rng.shuffle(words)
        parts.append(WORDING.summary(" ".join([*words, w.BIASES[taste.bias]])))
    elif kind == "blocks":
        parts += [WORDING.header, *_blocks(rng, past)]
    return "".join([*parts, WORDING.request(own)]), own.text


def _review(rng: random.Random, item: Item, grade: int, taste: w.Taste) -> Review:
    text = w.said(rng, item, grade, taste)
    return Review(item.id, "", item.id, text, w.rated(grade, taste), "", 0)


def _style(review: Review) -> list[str]:
    return [word for word in review.text.split() if word in w.STYLE]


def _bias(review: Review, grade: int) -> str:
    return w.BIASES[round(review.rating) - grade]


def _different(review: Review, grade: int) -> str:
    return " ".join([*_style(review), _bias(review, grade)])


def _summary(past: list[tuple[Review, Item, int]]) -> str:
    """Style words in the order of their appearance, and the rating where it is not level."""
    style = dict.fromkeys(word for review, _, _ in past for word in _style(review))
    biases = [_bias(review, grade) for review, _, grade in past]
    uneven = [bias for bias in biases if bias != w.BIASES[0]]
    return " ".join([*style, (uneven or biases)[0]])


def _blocks(rng: random.Random, past: list[tuple[Review, Item, int]]) -> list[str]:
    """Blocks with words where soft prompts will be: of both kinds, or of one; titles or none."""
    kinds = rng.choice([KINDS, KINDS[:1], KINDS[1:]])
    bare = rng.random() < 0.2
    found = []
    for review, item, grade in past:
        style = _style(review)
        slots = {KINDS[0]: style, KINDS[1]: [rng.choice(style), _bias(review, grade)]}
        words = [word for kind in kinds for word in rng.sample(slots[kind], 1)]
        found.append("".join([*([] if bare else [f" {item.title}"]), *(f" {x}" for x in words)]))
    return found


def batch_of(
    rng: random.Random, tok: PreTrainedTokenizerFast, size: int, kind: str
) -> tuple[Tensor, Tensor]:
    """Ids and labels ``(B, L)`` of one kind of prompt, padded on the right."""
    rows = []
    for _ in range(size):
        prompt, answer = example(rng, kind)
        before = tok(prompt, add_special_tokens=False)["input_ids"]
        after = [*tok(f" {answer}", add_special_tokens=False)["input_ids"], tok.eos_token_id]
        rows.append((before + after, [IGNORED] * len(before) + after))
    width = max(len(ids) for ids, _ in rows)
    ids, labels = torch.zeros(size, width, dtype=torch.long), torch.full((size, width), IGNORED)
    for at, (row, target) in enumerate(rows):
        ids[at, : len(row)], labels[at, : len(row)] = torch.tensor(row), torch.tensor(target)
    return ids, labels


def train(settings: ReviewerSettings, out: Path, *, log_every: int = 100) -> Path:
    """Trains the model and writes it as a transformers checkpoint with its card."""
    torch.set_num_threads(1)
    tok = tokenizer()
    net = model(settings, len(tok))
    optimizers = build_optimizers(net, settings.lr)
    rng, started = random.Random(f"reviewer/{settings.seed}"), time.monotonic()
    tally: dict[str, list[float]] = {}
    for step in range(settings.steps):
        kind = drawn(rng)  # one a step: kinds differ in length, and padding costs as text does
        ids, labels = batch_of(rng, tok, settings.batch, kind)
        asked = labels[:, 1:] != IGNORED
        states = net.model(input_ids=ids).last_hidden_state[:, :-1]  # padded on the right
        loss = nn.functional.cross_entropy(net.lm_head(states[asked]), labels[:, 1:][asked])
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        rate = min(1.0, (step + 1) / settings.warmup) * (1 - step / settings.steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * rate
            optimizer.step()
            optimizer.zero_grad()
        tally.setdefault(kind, []).append(float(loss.detach()))
        if (step + 1) % log_every == 0:
            means = " ".join(f"{k} {sum(v) / len(v):.3f}" for k, v in sorted(tally.items()))
            seconds = time.monotonic() - started
            print(f"step {step + 1}/{settings.steps} {means} ({seconds:.0f} s)", file=sys.stderr)
            tally = {}
    net.half().save_pretrained(out)
    tok.save_pretrained(out)
    minutes = round((time.monotonic() - started) / 60)
    told = {**asdict(settings), "minutes": minutes}
    replace_text(out / "training.json", json.dumps(told, indent=2) + "\n")
    return out


def skills(out: Path, n: int = 200, seed: int = 1) -> dict[str, dict[str, float]]:
    """What a trained model does with new users and items, by kind of prompt; shares of ``n``.

    Reviews: ``style`` (all style words are of the user), ``rating`` (the right word). Differences
    and summaries: ``words`` (the same set of words as the truth).
    """
    backbone = load_backbone(out, name=out.name, dtype="float32")
    rng, found = random.Random(f"reviewer/skills/{seed}"), dict[str, dict[str, float]]()
    for kind in SHARES:
        rows = [example(rng, kind) for _ in range(n)]
        said = backbone.generate([prompt for prompt, _ in rows], max_new_tokens=12)
        pairs = [(set(text.split()), set(answer.split()), set(prompt.split()))
                 for text, (prompt, answer) in zip(said, rows, strict=True)]  # fmt: skip
        if kind in ("compare", "summarise"):
            found[kind] = {"words": sum(a == b for a, b, _ in pairs) / n}
            continue
        style, ratings = set(w.STYLE), set(w.RATINGS)
        found[kind] = {
            "style": sum(bool(a & style) and a & style <= named for a, _, named in pairs) / n,
            "rating": sum(a & ratings == b & ratings for a, b, _ in pairs) / n,
        }
    return found


def write_card(out: Path) -> Path:
    """The model card, written from the files of the folder and from what the model does now."""
    run, config = (
        json.loads((out / name).read_text(encoding="utf-8"))
        for name in ("training.json", "config.json")
    )
    size = (out / "model.safetensors").stat().st_size
    rows = "\n".join(
        f"| {kind} | {SHARES[kind]:.2f} | {what} | {share:.2f} |"
        for kind, shares in skills(out).items()
        for what, share in shares.items()
    )
    source = Path(__file__).with_name("reviewer.md.j2").read_text(encoding="utf-8")
    template = jinja2.Template(source, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    card = out / "README.md"
    replace_text(card, template.render(run=run, config=config, size=size / 2**20, rows=rows))
    return card


def main(argv: list[str] | None = None) -> int:
    """Command line; see ``--help``."""
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--steps", type=positive, default=ReviewerSettings.steps)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--card", action="store_true", help="write the card of a trained one only")
    args = parser.parse_args(argv)
    if not args.card:
        train(ReviewerSettings(steps=args.steps), args.out)
    print(f"wrote {write_card(args.out)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
