"""The libraries' trainers, as this kit uses them: counted, silent, offline, on our own token rows.

Imports TRL, so it is imported inside the functions that train. Every override is named with the
behaviour it replaces (TRL 1.16.0, transformers 5.23.0).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, Seq2SeqTrainer, TrainerCallback
from trl import DPOTrainer, SFTTrainer

from chameleon_lib.kit.progress import Progress
from chameleon_lib.rivals.rows import IGNORED, answer_logp
from chameleon_lib.rivals.settings import TunerSettings
from chameleon_lib.rivals.tuned import REENTRANT, Meter


class _StepEnd(TrainerCallback):
    def __init__(self, meter: Meter, progress: Progress) -> None:
        self.meter, self.progress = meter, progress

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        self.meter.step()
        self.progress.advance()


class _Counted(ABC):
    """Mixin: counts what every micro-batch holds."""

    meter: Meter

    @abstractmethod
    def counts(self, inputs: dict[str, Tensor]) -> tuple[int, int, int]:
        """(rows, tokens with a loss, tokens read) of a micro-batch."""

    def training_step(self, model: Any, inputs: dict[str, Tensor], *args: Any) -> Tensor:
        """The library's, counted."""
        counts = self.counts(inputs)
        loss: Tensor = super().training_step(model, inputs, *args)  # type: ignore[misc]
        self.meter.batch(float(loss), *counts)
        return loss


class _Offline:
    """Mixin: nothing leaves the machine."""

    def _send_telemetry(self) -> None:
        """TRL reports every training to a server; a run of the kit reports nothing."""


class RowTrainer(_Counted, _Offline, SFTTrainer):
    """TRL's supervised trainer on rows that are token ids already."""

    def counts(self, inputs: dict[str, Tensor]) -> tuple[int, int, int]:
        """The first token of a row has no prediction and so no loss."""
        ids, trained = inputs["input_ids"], int((inputs["labels"][:, 1:] != IGNORED).sum())
        if "attention_mask" in inputs:
            return len(ids), trained, int(inputs["attention_mask"].sum())
        # Packed whole documents come as one long row; each begins at position 0.
        return int((inputs["position_ids"] == 0).sum()), trained, ids.numel()


class PairTrainer(_Counted, _Offline, DPOTrainer):
    """TRL's preference trainer on our token rows, against reference scores of the frozen backbone.

    The scores come from the backbone itself, in evaluation mode and once per pair; TRL would run
    the policy with its adapter off, in training mode and again in every epoch.
    """

    _pairs = 0  # of the optimiser step at work

    def get_batch_samples(self, *args: Any) -> tuple[list[Any], Any]:
        """The library's micro-batches of a step, their pairs counted."""
        samples, items = super().get_batch_samples(*args)
        self._pairs = sum(len(part["input_ids"]) // 2 for part in samples)
        return samples, items

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The library's mean over a micro-batch, weighted by its share of the step's pairs.

        The library weighs the micro-batches of a step alike, also a last one with fewer pairs.
        """
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if return_outputs or not self._pairs:
            return found
        share = len(inputs["input_ids"]) // 2 / self._pairs
        return found * (share * self.current_gradient_accumulation_steps)

    def _prepare_dataset(self, dataset: Dataset, *_args: Any) -> Dataset:
        """TRL would tokenise prompt + answer as one text, which can move the seam between them."""
        return dataset

    def counts(self, inputs: dict[str, Tensor]) -> tuple[int, int, int]:
        """Pairs, tokens of both answers, tokens of both sequences."""
        return (
            len(inputs["input_ids"]) // 2,
            int(inputs["completion_mask"].sum()),
            int(inputs["attention_mask"].sum()),
        )


class Seq2SeqSft(_Counted, Seq2SeqTrainer):
    """Supervised fine-tuning of an encoder-decoder."""

    def counts(self, inputs: dict[str, Tensor]) -> tuple[int, int, int]:
        """Answer tokens carry the loss; the encoder reads the prompt, the decoder the answer."""
        trained = int((inputs["labels"] != IGNORED).sum())
        return len(inputs["input_ids"]), trained, trained + int(inputs["attention_mask"].sum())

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean over all answer tokens of an optimiser step.

        T5's own loss averages over a micro-batch and ignores the number it is handed, so that the
        trainer would add up micro-batches instead of averaging them.
        """
        outputs = model(**inputs)
        total = -answer_logp(outputs.logits, inputs["labels"]).sum()
        tokens = (inputs["labels"] != IGNORED).sum()
        loss = total / (tokens if num_items_in_batch is None else num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


def arguments(
    settings: TunerSettings, seed: int, folder: str, device: torch.device
) -> dict[str, Any]:
    """Arguments that all three trainers share; TRL's own defaults differ and are never relied on.

    ``seed`` is that of adapters, dropout and the order of the rows; nothing is saved in ``folder``.
    """
    on_cpu = device.type == "cpu"
    return {
        "output_dir": folder,
        "per_device_train_batch_size": settings.at_once,
        "gradient_accumulation_steps": settings.accumulation * settings.batch // settings.at_once,
        "num_train_epochs": settings.epochs,
        "max_steps": -1 if settings.max_steps is None else settings.max_steps,
        "learning_rate": settings.lr,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup,  # below 1: a share of the steps
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "optim": "adamw_torch",
        "seed": seed,
        "bf16": settings.precision == "bf16",
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "gradient_checkpointing": settings.checkpointing,
        "gradient_checkpointing_kwargs": REENTRANT if settings.checkpointing else None,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def run(trainer: Any, label: str, settings: TunerSettings) -> Meter:
    """Train, and return what was counted."""
    trainer.remove_callback(PrinterCallback)  # it prints to stdout where there is no bar
    trainer.meter = meter = Meter()
    with Progress(label, settings.steps(len(trainer.train_dataset))) as progress:
        trainer.add_callback(_StepEnd(meter, progress))
        trainer.train()
    return meter
