"""The form of a free-text answer, whoever it is for: refusal, preamble, echo, length.

A refusal is no answer, a preamble ("Sure! Here's a paraphrase of the tweet:") is the model's and
nobody's style. Both move ROUGE, so tables show their rates beside it, and pairs that hold them
teach an edit the form instead of the person. The rules are those of instruction-tuned models'
English; what people write ("I'm sorry I missed it", "here's my cat:") must not trip them, which
tests on real posts measure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from chameleon_lib.core.task import tokens

# Scores of an answer's form, each 0 or 1 but `words`; their means are rates.
FORM = ("empty", "refusal", "preamble", "words")

_QUOTES = "\"'“”‘’«»*_` \n\t"
_MODEL = r"(?:ai\b|a\.i\.|artificial intelligence|(?:large )?language model|chat ?bot)"
_TASK = (
    r"(?:assist|help (?:you|with)|provide|fulfil+|comply|complete (?:this|that|the|your)|generate|"
    r"create (?:a|the|content)|paraphrase|rewrite|respond|engage|process|access|browse|"
    r"answer (?:this|that|your|the)|do that|continue with)"
)
_UNABLE = (
    r"(?:can(?:no|')t|can not|could(?:n't| not)|(?:am|'m) (?:un|not )able to|won't be able to|"
    r"do(?:n't| not) have (?:the ability|access|enough|any information|the (?:context|capability)))"
)
_REFUSALS = re.compile(
    rf"\b(?:as|i'?m|i am) (?:just |only |currently )?(?:an? )?(?:\w+ ){{0,2}}?{_MODEL}"
    rf"|\b(?:sorry|apologi[sz]e|apologies)\b[^.!?\n]{{0,40}}\bfor (?:the|any|my) (?:previous )?"
    rf"(?:confusion|misunderstanding|inconvenience|oversight|mistake)"
    rf"|\bi(?:'m| am)?,? ?{_UNABLE} (?:to )?(?:\w+ )?{_TASK}"
    rf"|\bhow (?:can|may) i (?:help|assist) you\b"
    rf"|\b(?:please|could you(?: please)?) (?:provide|share|give)(?: me)?(?: with)? "
    rf"(?:the|your|more) (?:\w+ )?(?:tweet|text|post|context|details|information|question|review)",
    re.IGNORECASE,
)
_OPENING = 200  # characters: a refusal stands at the start, before whatever follows it

_KIND = (
    r"(?:paraphrase|paraphrasing|tweet|post|answer|response|reply|version|rewrite|review|score|"
    r"rating|tag|title|headline|output|text|message|sentence|example|revision)"
)
_MADE = (
    r"(?:paraphrased|rewritten|revised|rephrased|reworded|personali[sz]ed|possible|final|new|"
    r"updated|modified|improved|suggested|predicted|short|concise|sample|correct)"
)
_PREAMBLES = re.compile(
    # "Sure! Here's a paraphrased version of the tweet in your style:", "Below is ...:"
    r"(?:(?:sure(?: thing)?|certainly|of course|absolutely|ok(?:ay)?|great|yes)[!,.]* +)?"
    rf"(?:here(?:'s| is| are)|below (?:is|are)|this is|i(?:'ve| have|'d| would)? "
    rf"(?:\w+ )?(?:paraphrased?|rewr(?:ite|ote|itten)|rephrased?))"
    rf"(?=[^:\n]*\b(?:{_KIND}|{_MADE})s?\b)[^:\n]{{0,160}}:\s+"
    # "Paraphrased tweet:", "**Answer:**", "The rewritten post in the user's style is:"
    rf"|(?:(?:the|my|your|a|user'?s) )?(?:{_MADE} ){{0,2}}{_KIND}s?"
    rf"(?: (?:of|in|for|with|to) [^:\n]{{1,80}})?(?: (?:is|would be|could be|might be))?\s*:\s*"
    rf"|(?:the|a) (?:{_MADE} ){{1,2}}{_KIND}s?(?: (?:of|in|for) [^:\n\"]{{1,80}})?"
    rf" (?:is|would be|could be)\s+(?=[\"“])"
    rf"|{_MADE}\s*:\s*"
    # "Sure!" on a line of its own
    r"|(?:sure(?: thing)?|certainly|of course|absolutely)[!,.]*\s*\n+",
    re.IGNORECASE,
)


def _plain(text: str) -> str:
    """One kind of apostrophe, no quotes or stars around."""
    return text.replace("’", "'").strip(_QUOTES)


def is_empty(answer: str) -> bool:
    """Whether an answer has no token of ROUGE (letters or digits of ASCII)."""
    return not tokens(answer)


def is_refusal(answer: str) -> bool:
    """Whether an answer declines, asks back or speaks of the model itself, in its first words."""
    return bool(_REFUSALS.search(_plain(answer)[:_OPENING]))


def preamble(answer: str) -> str:
    """What an answer says before it begins, such as "Paraphrased tweet:"; empty without one."""
    text = answer.replace("’", "'")
    start = len(text) - len(text.lstrip(_QUOTES))
    end = start
    while found := _PREAMBLES.match(text, end):
        end = found.end() + len(text[found.end() :]) - len(text[found.end() :].lstrip("*_` \n\t"))
    return answer[:end] if end > start else ""


def without_preamble(answer: str) -> str:
    """The answer proper: what stands behind the preamble, without quotes that enclose all of it."""
    text = answer[len(preamble(answer)) :].strip()
    enclosed = re.fullmatch(r"[\"“]([^\"“”]*)[\"”]\.?", text)
    return enclosed[1].strip() if enclosed else text


def is_echo(answer: str, source: str) -> bool:
    """Whether an answer repeats a text of the prompt word by word, up to case and marks."""
    return bool(tokens(answer)) and tokens(without_preamble(answer)) == tokens(source)


def form_scores(answers: Sequence[str]) -> dict[str, np.ndarray]:
    """:data:`FORM` of every answer, arrays (n,) float64; a word is a token of ROUGE."""
    rows = {
        "empty": [is_empty(text) for text in answers],
        "refusal": [is_refusal(text) for text in answers],
        "preamble": [bool(preamble(text)) for text in answers],
        "words": [len(tokens(text)) for text in answers],
    }
    return {name: np.array(rows[name], dtype=np.float64) for name in FORM}
