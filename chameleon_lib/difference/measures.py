"""Scores of a written review against the real one, by nltk and rouge-score."""

from __future__ import annotations

from collections.abc import Sequence

from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer

_ROUGE = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
_SMOOTH = SmoothingFunction().method1


class _NoSynonyms:
    """In the place of WordNet, which is no part of a checkout: METEOR of equal words and stems."""

    def synsets(self, word: str) -> Sequence[str]:
        del word
        return ()


def meteor(gold: str, said: str) -> float:
    """METEOR by equal words and stems; WordNet's synonyms would need a download."""
    return float(meteor_score([gold.split()], said.split(), wordnet=_NoSynonyms()))


def bleu(gold: str, said: str) -> float:
    """BLEU-4 of one text, 0 to 100; counts of nothing are smoothed (method 1)."""
    if not said.split():
        return 0.0
    return 100 * float(sentence_bleu([gold.split()], said.split(), smoothing_function=_SMOOTH))


def scores(gold: str, said: str) -> dict[str, float]:
    """ROUGE-1 and -L (F1), METEOR and BLEU."""
    rouge = _ROUGE.score(gold, said)
    found = {name: float(rouge[name].fmeasure) for name in ("rouge1", "rougeL")}
    return {**found, "meteor": meteor(gold, said), "bleu": bleu(gold, said)}
