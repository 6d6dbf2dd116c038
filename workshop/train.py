"""Train an embedded model: ``python -m workshop.train --family decoder``.

Two small `transformers` models learn the prompts of the kit on train sentences of the embedded
world. The decoder sees one history and five prompts about it per sequence (a block mask keeps the
prompts apart), which makes every pass over a history count five times; the encoder-decoder sees
one prompt per sequence, learns to read histories through label infilling, and ends with edit
lessons (`EditLessons`).

A run is fixed by (family, seed, steps), writes checkpoints and resumes after a kill.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from chameleon_lib.backbones.families import site_modules
from chameleon_lib.demo import FAMILIES
from chameleon_lib.errors import UserError
from chameleon_lib.kit.command_line import Parser, positive
from chameleon_lib.kit.paths import package_dir
from workshop import run_script
from workshop.examples import (
    Batch,
    TrainSettings,
    decoder_batch,
    encdec_batch,
)
from workshop.models import build_model, build_tokenizer

# The encoder-decoder is slow on LaMP-2 (which cue of the query fits the insight) and quick on
# LaMP-7, hence the shares. The less sure a model is of a taste, the less likely it finds the
# personal answer; a propensity above one half makes up for that in the slower learner.
RECIPES: dict[str, dict[str, Any]] = {
    "decoder": {"steps": 3000},
    "encdec": {
        "steps": 12000,
        "propensity": 0.55,
        "task_shares": {"LaMP_2": 0.5, "LaMP_3": 0.32, "LaMP_7": 0.18},
        "lesson_steps": 2000,
    },
}


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Per stage: linear warm-up, then cosine to zero; a factor on the peak rate ``lr``."""
    peak, start, steps = 1.0, 0, settings.steps
    if step >= settings.steps:
        peak, start, steps = settings.lesson_lr / settings.lr, settings.steps, settings.lesson_steps
    if step - start < settings.warmup:
        return peak * (step - start + 1) / settings.warmup
    done = (step - start - settings.warmup) / max(1, steps - settings.warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class EditLessons(nn.Module):
    """Second stage of the encoder-decoder: an axis at the MLP outputs that tells whose answer.

    After the first stage the model can give either answer, but it settles which one in its
    attention, where an edit of MLP outputs has no hold. Now some plain prompts run with an edit of
    the paper's form along directions that are learned with the model and then thrown away: with a
    boost the personal answer is right, with a removal the generic one. The model thereby gets what
    a decoder of this size has by itself: a direction that carries the choice.

    One direction per decoder layer, active on the rows of a batch that have a gain.

    Args:
        model: The model in training; hooks are put on its decoder's MLP outputs.
        seed: Seeds the first directions.
    """

    def __init__(self, model: PreTrainedModel, seed: int) -> None:
        super().__init__()
        config = model.config
        n_layers, width = int(config.num_decoder_layers), int(config.d_model)
        generator = torch.Generator().manual_seed(seed)
        # Short, so that the optimiser's steps turn them soon; only their direction counts.
        self.axes = nn.Parameter(0.1 * torch.randn(n_layers, width, generator=generator))  # (L, d)
        self.gains: Tensor | None = None  # (B,) of the batch in work; None: no row is edited
        sites = site_modules(model, config.model_type, "mlp_out", n_layers)
        self._handles = [
            site.register_forward_hook(self._hook(layer)) for layer, site in enumerate(sites)
        ]

    def _hook(self, layer: int) -> Callable[..., Tensor]:
        def edit(module: nn.Module, args: object, output: Tensor) -> Tensor:
            del module, args
            if self.gains is None:
                return output
            axis = nn.functional.normalize(self.axes[layer], dim=0).to(output.dtype)
            amount = (output @ axis) * self.gains[:, None].to(output.dtype)  # (B, T)
            return output + amount[..., None] * axis

        return edit

    def close(self) -> None:
        """Takes the hooks off; the directions are not part of the model."""
        for handle in self._handles:
            handle.remove()


@contextmanager
def gains_of(lessons: EditLessons | None, gains: Tensor | None) -> Iterator[None]:
    """The forward pass inside runs with these gains."""
    if lessons is None:
        yield
        return
    lessons.gains = gains
    try:
        yield
    finally:
        lessons.gains = None


def build_optimizers(
    model: PreTrainedModel, lr: float, lessons: EditLessons | None = None
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, head, norms and biases."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = [] if lessons is None else list(lessons.parameters())
    for name, parameter in model.named_parameters():
        inner = parameter.ndim == 2 and not any(
            part in name for part in ("embed", "shared", "lm_head", "relative_attention_bias")
        )
        (matrices if inner else others).append(parameter)
    muon = torch.optim.Muon(
        matrices, lr=lr, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)]


def weighted_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy with a weight per token, normalised by the sum of weights."""
    losses = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), batch.targets.flatten(), reduction="none"
    )
    weights = batch.weights.flatten()
    return (losses * weights).sum() / weights.sum()


def answers_right(logits: Tensor, batch: Batch) -> dict[str, tuple[int, int]]:
    """Per kind of example: (answers with every token right under teacher forcing, answers)."""
    wrong = (logits.argmax(-1) != batch.targets) & (batch.answer_of >= 0)
    failed = set(batch.answer_of[wrong].tolist())
    counts: dict[str, tuple[int, int]] = {}
    for index, kind in enumerate(batch.kinds):
        right, total = counts.get(kind, (0, 0))
        counts[kind] = (right + (index not in failed), total + 1)
    return counts


def train(
    settings: TrainSettings, out: Path, *, log_every: int = 100, checkpoint_every: int = 500
) -> Path:
    """Train one model and write it as a `transformers` checkpoint.

    Args:
        settings: The run.
        out: Folder of the checkpoint; ``out/resume.pt`` holds the state of an unfinished run.
        log_every: Steps between progress lines (stderr).
        checkpoint_every: Steps between saved states that a killed run resumes from.

    Returns:
        ``out``.
    """
    torch.set_num_threads(1)  # two threads are slower when anything else runs, and less repeatable
    tokenizer = build_tokenizer()
    model = build_model(settings.family, settings.seed, tokenizer)
    lessons = EditLessons(model, settings.seed) if settings.lesson_steps else None
    optimizers = build_optimizers(model, settings.lr, lessons)
    rng = random.Random(f"{settings.family}/{settings.seed}")
    make_batch = decoder_batch if settings.family == "decoder" else encdec_batch
    out.mkdir(parents=True, exist_ok=True)
    resume = out / "resume.pt"
    first, before = 0, 0.0  # steps and seconds of earlier, killed starts
    if resume.exists():
        try:
            state = torch.load(resume, weights_only=False)
        except Exception as error:  # whatever a damaged archive or pickle raises
            raise UserError(
                f"{resume} cannot be read as the state of an unfinished training; remove it to "
                "start anew."
            ) from error
        if state["settings"] == asdict(settings):
            model.load_state_dict(state["model"])
            if lessons is not None:
                lessons.load_state_dict(state["lessons"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            rng.setstate(state["rng"])
            first, before = state["step"], state["seconds"]
    model.train()
    started, tally, total = time.monotonic(), dict[str, tuple[int, int]](), 0.0
    for step in range(first, settings.total):
        if step == settings.steps:
            # The second stage starts from the weights that the first alone would have saved.
            model.half().float()
            optimizers = build_optimizers(model, settings.lr, lessons)
            rng = random.Random(f"{settings.family}/{settings.seed}/lessons")
        batch = make_batch(tokenizer, rng, step, settings)
        with torch.autocast("cpu", torch.bfloat16), gains_of(lessons, batch.gains):
            logits = model(**batch.inputs).logits
        loss = weighted_loss(logits, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * learning_rate(step, settings)
            optimizer.step()
            optimizer.zero_grad()
        total += loss.item()
        for kind, (right, count) in answers_right(logits.detach(), batch).items():
            old = tally.get(kind, (0, 0))
            tally[kind] = (old[0] + right, old[1] + count)
        if (step + 1) % log_every == 0:
            seconds = time.monotonic() - started
            left = seconds / (step + 1 - first) * (settings.total - step - 1)
            shares = " ".join(f"{k} {r / n:.2f}" for k, (r, n) in sorted(tally.items()))
            print(
                f"{settings.family}/{settings.seed} step {step + 1}/{settings.total} "
                f"loss {total / log_every:.3f} {shares} ({left / 60:.0f} min left)",
                file=sys.stderr,
                flush=True,
            )
            tally, total = {}, 0.0
        if (step + 1) % checkpoint_every == 0:
            seconds = before + time.monotonic() - started
            _write_state(resume, settings, model, lessons, optimizers, rng, step + 1, seconds)
    if lessons is not None:
        lessons.close()
    save(model, tokenizer, settings, out, minutes=(before + time.monotonic() - started) / 60)
    resume.unlink(missing_ok=True)
    return out


def _write_state(
    path: Path,
    settings: TrainSettings,
    model: PreTrainedModel,
    lessons: EditLessons | None,
    optimizers: list[torch.optim.Optimizer],
    rng: random.Random,
    step: int,
    seconds: float,
) -> None:
    partial = path.with_suffix(".partial")
    state = {
        "settings": asdict(settings),
        "model": model.state_dict(),
        "lessons": None if lessons is None else lessons.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "rng": rng.getstate(),
        "step": step,
        "seconds": seconds,
    }
    torch.save(state, partial)
    os.replace(partial, path)


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    settings: TrainSettings,
    out: Path,
    *,
    minutes: float,
) -> None:
    """Write fp16 safetensors, tokenizer, and the settings of the run with its wall time."""
    with tempfile.TemporaryDirectory(prefix="partial-", dir=out) as name:
        folder = Path(name)
        model.half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        text = json.dumps({**asdict(settings), "minutes": round(minutes)}, indent=2) + "\n"
        (folder / "training.json").write_text(text, encoding="utf-8")
        # config.json last: its presence says that the checkpoint is complete.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, out / path.name)


def main(argv: list[str] | None = None) -> int:
    """Command line; see ``--help``."""
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps", type=positive, help="steps of the first stage; default: the recipe"
    )
    parser.add_argument("--out", type=Path, help="default: the package's own folder")
    args = parser.parse_args(argv)
    recipe = {**RECIPES[args.family], **({"steps": args.steps} if args.steps else {})}
    settings = TrainSettings(family=args.family, seed=args.seed, **recipe)
    out = args.out or package_dir() / "demo" / f"{args.family}-{args.seed}"
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}; give 0 or more.")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder.")
    print(f"wrote {train(settings, out)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
