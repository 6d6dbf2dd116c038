"""The work of one backbone on one task, piece by piece, under the names by which it is stored.

A piece is what the artifact store keeps: notebooks that need the same one pay for it once, so the
work of several notebooks is the union of theirs. Every count follows from the method: two insights
per user, two answers per query, two texts per kept pair, and an exam per arm. LaMP has one query
per user.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from chameleon_lib.kit.flops import Tokens, Work
from chameleon_lib.kit.forecast.known import Model
from chameleon_lib.kit.forecast.texts import CHARS_PER_TOKEN, Shape, prompt_tokens

STAGES = (
    "insights", "pairs", "activations", "CCS", "fit", "evaluation", "LLM-REC", "ALOE", "DPO",
)  # fmt: skip

# How fits and trainings run: the defaults of their settings, which a test compares.
FIT_STEPS = {True: 20, False: 40}  # embedded models, others
FIT_BATCH = {True: 16, False: 32}  # embedded models, others
HELD_OUT, CHECK_EVERY = 0.2, 5
STEPS_TAKEN = {True: 18, False: 30}  # before the held-out users stop a fit; means of demo runs
CCS_EPOCHS, CCS_TRIES = 1000, 10
FULL_CCS = 2.8  # the probe, the one on shuffled pairs, the one on four fifths of the pairs
MIX_ROWS, MIX_TOKENS, MIX_CHARS = 40, 96, 102  # the stand-in of ALOE's dialogues
# Passes of ALOE over its rows: embedded decoders, embedded encoder-decoders. All other trainings
# make one, as the paper's do.
EMBEDDED_ALOE = (3, 2)

Key = tuple[str, ...]  # stage, backbone, task, then what


@dataclass(frozen=True)
class Piece:
    """Texts that are asked or read, and the work on them."""

    prompts: float
    work: Work


@dataclass
class Cell:
    """One backbone on one task, in one world.

    Attributes:
        model: The backbone.
        task: Task name.
        shape: Mean lengths of its texts.
        k: History items in a prompt.
        bytes_per_number: Of what is kept per token.
        where: Name of a world or selection of its own; empty for that of Table 1.
        fit_steps: Adam steps of a fit.
        pieces: Filled by the methods.
        prefix_bytes: What a backbone keeps of prompts that are asked again.
        aloe_lora: Whether ALOE trains an adapter.
        twice: Whether trainings compute what they need for the way back a second time.
    """

    model: Model
    task: str
    shape: Shape
    k: int = 10
    bytes_per_number: int = 4
    where: str = ""
    fit_steps: int = FIT_STEPS[False]
    pieces: dict[Key, Piece] = field(default_factory=dict)
    prefix_bytes: int = 2 << 30
    aloe_lora: bool = False
    twice: bool = False

    @property
    def embedded(self) -> bool:
        """Whether the backbone is one of the kit's own."""
        return self.model.embedded

    def length(self, kind: str) -> float:
        """Mean tokens of a prompt."""
        return prompt_tokens(kind, self.task, self.shape, self.k, self.embedded)

    def kept(self, kind: str, n: float) -> float:
        """Share of ``n`` prompts whose states fit into what a backbone keeps."""
        size = n * self.length(kind) * self.model.state * self.bytes_per_number
        return min(1.0, self.prefix_bytes / size) if size else 1.0

    def add(
        self,
        stage: str,
        what: str,
        prompts: float,
        read: float,
        written: float = 0,
        backward: tuple[float, float] = (0, 0),
        trainable: float = 0,
        added: bool = False,
        probes: float = 0,
    ) -> None:
        """Note a piece; one of the same name counts once, the larger of the two."""
        key = (stage, self.model.id, self.task, self.where, what)
        work = Work(
            Tokens(round(read), round(written)),
            Tokens(round(backward[0]), round(backward[1])),
            round(trainable),
            added,
            round(probes),
        )
        if key not in self.pieces or self.pieces[key].prompts < prompts:
            self.pieces[key] = Piece(prompts, work)

    def insights(self, part: str, n: float) -> None:
        """Both insights of ``n`` users."""
        written = 2 * n * self.shape.insight_written
        self.add("insights", part, 2 * n, 2 * n * self.length("write insight"), written)

    def query_insights(self, part: str, n: float) -> None:
        """Both insights of every query (B2)."""
        read = 2 * n * (self.length("write insight") + self.shape.query)
        self.add("insights", f"query {part}", 2 * n, read, 2 * n * self.shape.insight_written)

    def pairs(self, part: str, n: float) -> None:
        """Both answers to ``n`` queries."""
        read = n * (self.length("personalised") + self.length("neutral"))
        self.add("pairs", part, 2 * n, read, 2 * n * self.shape.answer)

    def activations(self, what: str, n_pairs: float, context: bool = True) -> None:
        """Both texts of ``n_pairs`` pairs."""
        read = 2 * n_pairs * self.length("pair") if context else 2 * n_pairs
        self.add("activations", what, 2 * n_pairs, read, 2 * n_pairs * (self.shape.answer - 1))

    def ccs(self, what: str, n_pairs: float, fits: float, epochs: int = CCS_EPOCHS) -> None:
        """``fits`` probes: four operations per weight, text and epoch, at every layer."""
        probes = 4 * epochs * CCS_TRIES * self.model.layers * self.model.width * 2 * n_pairs
        self.add("CCS", what, 0, 0, probes=fits * probes)

    def fits(
        self,
        draw: str,
        group: float,
        names: tuple[str, ...],
        kind: str = "instruct",
        held: float = HELD_OUT,
    ) -> None:
        """Preference fits on the pairs of a group; they share their prompts.

        Args:
            draw: Which group.
            group: Its queries.
            names: One per fit.
            kind: Prompt of ``texts.PARTS``.
            held: Share of the users that is held out; of a single one there is none.
        """
        n, answer = group * self.shape.kept, self.shape.answer
        agreed = group - n
        stored, length = self.kept(kind, group), self.length(kind)
        self.add("fit", f"{draw} read", 0, group * length * stored)
        steps = min(self.fit_steps, STEPS_TAKEN[self.embedded])
        batch = FIT_BATCH[self.embedded]
        rows = 2 * _chunk((1 - held) * n, batch) + _chunk((1 - held) * agreed, batch)
        learned = steps * rows
        looked = (steps // CHECK_EVERY) * held * (2 * n + agreed) + group
        trainable = 2 * self.model.layers * self.model.width
        for name in names:
            self.add(
                "fit", f"{draw} {name}", 0,
                (learned + looked) * length * (1 - stored), (learned + looked) * answer,
                (0, learned * answer), trainable, True,
            )  # fmt: skip

    def exam(
        self, label: str, kind: str, arms: tuple[str, ...], n: float, scored: float | None = None
    ) -> None:
        """Every arm asks ``n`` prompts of a kind, and scores two answers to each.

        Prompts whose states do not fit are read again for the answer and for each score.

        Args:
            label: Whose exam it is; one reads its prompts once.
            kind: Prompt of ``texts.PARTS``.
            arms: Names of prompts with an edit.
            n: Prompts.
            scored: Tokens of a scored answer; those of an answer if None.
        """
        stored, length = self.kept(kind, n), self.length(kind)
        self.add("evaluation", f"{label} read {kind}", 0, n * length * stored)
        for arm in arms:
            again = 3 * n * length * (1 - stored)
            written = n * (self.shape.answer + 2 * (scored or self.shape.answer))
            self.add("evaluation", f"{label} {kind} {arm}", n, again, written)

    def asked(self, label: str, kind: str, n: float) -> None:
        """``n`` prompts that are read and answered once, and nothing is scored."""
        self.add(
            "evaluation", f"{label} {kind}", n, n * self.length(kind), n * self.shape.answer
        )

    def said(self, label: str, n: float) -> None:
        """What a model says to training queries; the answers scored beside it are empty."""
        self.exam(label, "instruct", ("plain",), n, scored=1)

    def llm_rec(self, n: float, variants: tuple[str, ...]) -> None:
        """A summary per query and variant; its answers are exams of their own."""
        for name in variants:
            read = n * self.length(f"write {name}")
            self.add("LLM-REC", name, n, read, n * self.shape.summary)
            self.exam("rivals", name, ("",), n)

    def aloe(self, what: str, n: float, share: float = 1.0) -> None:
        """Supervised training on a share of ``n`` gold answers and dialogues."""
        queries, dialogues = share * n, share * MIX_ROWS
        rows = queries + dialogues
        mixed = dialogues * (MIX_TOKENS if self.embedded else MIX_CHARS / CHARS_PER_TOKEN)
        passes = EMBEDDED_ALOE[bool(self.model.encoder)] if self.embedded else 1
        read = passes * (queries * self.length("instruct") + mixed)
        written = passes * queries * self.shape.answer
        trained = self.model.adapter if self.aloe_lora else self.model.weights.total
        again = 1 + self.twice
        self.add(
            "ALOE", what, rows, again * read, again * written, (read, written), trained,
            self.aloe_lora,
        )  # fmt: skip

    def dpo(self, what: str, n_pairs: float) -> None:
        """LoRA on pairs; a decoder reads the prompt before either answer."""
        copies = 1 if self.model.encoder else 2
        read, written = n_pairs * self.length("instruct"), 2 * n_pairs * self.shape.answer
        back = (copies * read, written)
        weights = self.model.adapter
        forward = tuple((1 + self.twice) * tokens for tokens in back)
        self.add(
            "DPO", what, n_pairs, forward[0] + read, forward[1] + written, back, weights, True
        )


def _chunk(rows: float, batch: int) -> float:
    """Mean rows of a fit's mini-batch; the last one is smaller."""
    return rows / math.ceil(rows / batch) if rows else 0.0
