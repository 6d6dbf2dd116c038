"""What work costs, in numbers that do not depend on the machine: tokens and FLOPs.

One formula for all methods, the usual approximation of two operations per weight and token, which
for a model that is trained whole gives the well-known 6·N (Kaplan et al. 2020, section 2.1):

    FLOPs = 2·N·(tokens forward) + 2·N·(tokens backward) + 2·P·(tokens backward)

N counts the weights that multiply a token, P the trained ones; weights that a method adds (an
adapter, the directions of an edit) count in N as well. The second term is the gradient on its way
through the activations, which a frozen backbone pays, too; the third is that of the trained
weights. Left out for all alike: attention's quadratic part, padding, the optimiser's own update.

Standard library only: a plan is printed before anything is installed or loaded.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Weights:
    """Weights that multiply a token of the prompt (``read``) or of an answer (``written``).

    A decoder uses all of its weights for both; an encoder-decoder its encoder for the one and its
    decoder for the other. Input embeddings are looked up and do not count, the output head does.
    """

    read: int
    written: int
    total: int


@dataclass(frozen=True)
class Tokens:
    """Tokens of prompts and of answers."""

    read: int = 0
    written: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.read + other.read, self.written + other.written)

    @property
    def total(self) -> int:
        """All of them."""
        return self.read + self.written


@dataclass(frozen=True)
class Work:
    """Tokens that a method sends forward and backward, and what it trains on them.

    Attributes:
        forward: Tokens read by the model.
        backward: Those of them that a gradient came back through.
        trainable: Trained weights.
        added: Whether these are weights beside the backbone's own.
        probes: FLOPs outside the backbone (the CCS probes).
    """

    forward: Tokens
    backward: Tokens = Tokens()
    trainable: int = 0
    added: bool = False
    probes: int = 0

    def flops(self, weights: Weights) -> int:
        """The formula above; trained weights are spread evenly over the backbone's."""
        share = min(1.0, self.trainable / weights.total)
        own = 1 + share if self.added else 1
        forward = weights.read * self.forward.read + weights.written * self.forward.written
        backward = weights.read * self.backward.read + weights.written * self.backward.written
        return round(2 * (own * forward + (own + share) * backward)) + self.probes
