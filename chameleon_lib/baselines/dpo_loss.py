"""The DPO loss, written out; the tests prove it equal to the library's.

    h    = beta * [ (log pi(c|x) - log ref(c|x)) - (log pi(r|x) - log ref(r|x)) ]
    loss = mean( -log sigmoid(h) )

with log p summed over the tokens of an answer and its EOS.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

IGNORED = -100  # label of a position that is no answer token, as in the libraries


def answer_logp(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed log-probabilities of answers.

    Args:
        logits: ``(B, T, V)``; position t predicts ``labels[:, t]``.
        labels: ``(B, T)`` int64, ``IGNORED`` where nothing is predicted.

    Returns:
        ``(B,)`` float32, nats.
    """
    real = labels != IGNORED
    logp = logits.float().log_softmax(dim=-1)  # (B, T, V)
    picked = logp.gather(-1, labels.clamp_min(0)[..., None])[..., 0]  # (B, T)
    return (picked * real).sum(dim=1)


def dpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    """The loss of a batch.

    Args:
        chosen: ``(B,)`` log-probabilities of the chosen answers under the policy, nats.
        rejected: ``(B,)`` those of the rejected answers.
        ref_chosen: ``(B,)`` the same under the frozen reference.
        ref_rejected: ``(B,)`` likewise.
        beta: Strength of the tie to the reference.

    Returns:
        Scalar, nats.
    """
    margin = (chosen - ref_chosen) - (rejected - ref_rejected)  # (B,)
    return -logsigmoid(beta * margin).mean()
