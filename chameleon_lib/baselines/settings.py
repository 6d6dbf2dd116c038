"""Settings of ALOE's fine-tuning and of DPO; defaults are the paper's (appendix A.5)."""

from __future__ import annotations

from dataclasses import dataclass

from chameleon_lib.baselines.options import TunerSettings, assumed, ours, stated
from chameleon_lib.core.protocols import Family
from chameleon_lib.errors import UserError

_SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class AloeSettings(TunerSettings):
    """ALOE's recipe on LaMP: supervised fine-tuning on gold answers, mixed with other dialogues.

    The row sees gold labels of train users, which CHAMELEON does not. Each field's metadata tells
    whether the paper gives it.
    """

    params: str = assumed(
        "full", "A.5 is silent; ALOE's code trains every weight.", options=("full", "lora"))
    history: str = assumed(
        "a3", "Whether prompts show the history is not stated; a3 is the plain prompt of A.3.",
        options=("a3", "none"))
    loss_on: str = assumed(
        "full", "Not stated; ALOE's code takes every token, the prompt's too. No meaning for an "
        "encoder-decoder, whose loss is on the answer.", options=("full", "assistant"))
    mix: str = stated(
        "codeact", "Dialogues mixed in. codeact needs a local copy in mix_path; standin is a small "
        "set of our own that keeps the proportions alive and does not imitate CodeAct.",
        options=("codeact", "standin", "none"))
    mix_path: str = ours("", "Local file of CodeActInstruct (.parquet, .json or .jsonl).")
    mix_ratio: str = assumed(
        "fraction", "'A relatively equal percentage': the same share of the dialogues as of the "
        "queries, or as many dialogues as queries.", options=("fraction", "count"))
    packing: str = assumed(
        "wrapped", "A.5 gives only the length; ALOE's code packs. wrapped: concatenate and cut "
        "anywhere, documents see each other (nearest to the library of that time); bfd: whole "
        "documents, kept apart; off. No meaning for an encoder-decoder.",
        options=("wrapped", "bfd", "off"))
    max_length: int = stated(
        8192, "Tokens of a packed row; capped at the model's context.", at_least=8)
    batch: int = stated(1, "Rows per device.", at_least=1)
    accumulation: int = stated(48, "Batches per optimiser step.", at_least=1)
    lr: float = stated(1e-5, "Peak learning rate.", above=0)
    schedule: str = assumed("linear", "Not given; the library's default.", options=_SCHEDULES)
    warmup: float = assumed(
        0.0, "Share of the steps; not given, the library's default.", at_least=0, below=1)
    max_grad_norm: float = assumed(1.0, "Not given; the library's default.", above=0)

    def _check_combinations(self) -> None:
        if self.mix == "codeact" and not self.mix_path:
            raise UserError(
                "mix codeact needs a local copy of CodeActInstruct: name its file in mix_path, or "
                "set mix to standin (a small set of the kit's own) or none."
            )
        if self.mix != "codeact" and self.mix_path:
            raise UserError(f"mix_path belongs to mix codeact, not to {self.mix}.")

    @classmethod
    def demo(cls, family: Family) -> AloeSettings:
        """The recipe at the scale of the embedded models.

        Rates and steps were chosen on train and dev users of the embedded world alone
        (``python -m chameleon_lib candidates``). The loss is on answers: on every token, as ALOE's
        code has it, decoders do not reliably gain on LaMP-3.
        """
        return cls(
            mix="standin",
            packing="off",
            loss_on="assistant",
            precision="fp32",
            batch=8,
            accumulation=2,
            epochs=_DEMO_ALOE_EPOCHS[family],
            lr=1e-3,
        )


@dataclass(frozen=True, kw_only=True)
class DpoSettings(TunerSettings):
    """Preference tuning on self-generated pairs: chosen y^P, rejected y^N, LoRA on the backbone.

    Each field's metadata tells whether the paper gives it.
    """

    pairs: str = assumed(
        "self", "The pairs are not described; the method's own, identical answers dropped. gold "
        "declares that chosen answers are gold ones, and the row then counts as having seen them.",
        options=("self", "gold"))
    beta: float = assumed(0.1, "Not given; the library's default.", above=0)
    quantisation: str = stated(
        "none", "How the backbone was loaded, which is what the adapter is trained on. The paper "
        "has bnb.nf4, of the package bitsandbytes.", options=("none", "nf4"), paper="nf4")
    batch: int = stated(16, "Pairs per device.", at_least=1)
    accumulation: int = stated(1, "Batches per optimiser step.", at_least=1)
    lr: float = stated(5e-5, "Peak learning rate.", above=0)
    schedule: str = stated("cosine", "Learning-rate schedule.", options=_SCHEDULES)
    warmup: float = stated(0.1, "Share of the steps.", at_least=0, below=1)
    max_grad_norm: float = stated(0.3, "Gradients are clipped to this norm.", above=0)

    @classmethod
    def demo(cls) -> DpoSettings:
        """The recipe at the scale of the embedded models.

        Rates and steps were chosen on train and dev users of the embedded world alone
        (``python -m chameleon_lib candidates``).
        """
        return cls(
            precision="fp32",
            batch=4,
            lora_r=16,
            lora_alpha=8.0,
            lr=2e-3,
        )


# At this rate two passes are not enough for decoders to reliably learn LaMP-3.
_DEMO_ALOE_EPOCHS: dict[Family, int] = {"decoder": 3, "encoder-decoder": 2}
