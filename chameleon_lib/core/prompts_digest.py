"""One hash for the wording of all prompts that a fit reads and writes."""

from __future__ import annotations

import hashlib
import json

from chameleon_lib.core.preferences import PreferencePair, pair_texts
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.lamp.prompts import answer_prompt, insight_prompt, unseen_prompt
from chameleon_lib.lamp.records import HistoryItem


def prompts_digest(task: str, settings: EditSettings) -> str:
    """SHA-256 of every prompt of a task, written out for a user made of placeholders.

    Profiles keep it: directions were read off texts of this wording, and belong to no other.

    Args:
        task: Task name.
        settings: The ``prompts_*`` and ``pairs_text`` fields.
    """
    items = [HistoryItem(str(at), f"<history {at}>", f"<label {at}>") for at in (1, 2)]
    query = "<query>"
    pair = PreferencePair("", "", query, tuple(items), "<personal>", "<neutral>")
    texts = [insight_prompt(task, items, "P"), insight_prompt(task, items, "N")]
    for role in ("P", "N"):
        for insight in ("<insight>", None):
            if role == "N" and insight is None:
                continue
            texts.append(
                answer_prompt(
                    task,
                    items,
                    query,
                    role="P" if role == "P" else "N",
                    insight=insight,
                    baseline=settings.prompts_baseline,  # type: ignore[arg-type]
                    fix_typos=settings.prompts_fix_typos,
                )
            )
    baseline = settings.prompts_baseline
    texts.append(unseen_prompt(task, query, baseline=baseline))  # type: ignore[arg-type]
    texts += [part for text in pair_texts(task, pair, settings) for part in text]
    return hashlib.sha256(json.dumps(texts).encode("ascii")).hexdigest()
