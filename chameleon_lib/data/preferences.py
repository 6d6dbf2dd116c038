"""Preferences as facts: what a user is asked, and what the answer should be.

The invented ones (``preferences.json``: ten types of ours, ten values each, and templates that make
nine variants of each) have the shape of UPQA: a sentence of the user's, a direct question that
names the attribute, a paraphrased, an implicit and a recommendation question, and a short target. A
local folder of UPQA (CC BY-NC 4.0) or of PrefEval's explicit rows can be read in their place;
nothing of either comes with the kit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from chameleon_lib.errors import UserError

TABLE = Path(__file__).with_name("preferences.json")
VARIANTS = 9
DIRECT, PARAPHRASED, IMPLICIT, RECOMMENDED = "direct", "paraphrased", "implicit", "recommendation"
KINDS = (DIRECT, PARAPHRASED, IMPLICIT, RECOMMENDED)  # of questions
LICENCES = {
    "UPQA": "CC BY-NC 4.0, amazon-science/personalization-editing-upqa (arXiv 2512.13676)",
    "PrefEval": "CC BY-NC 4.0, amazon-science/PrefEval (ICLR 2025)",
}


@dataclass(frozen=True, slots=True)
class Preference:
    """One attribute of one user.

    Attributes:
        user: Whose it is; unique in a set.
        kind: Attribute type, such as "hobby".
        sentence: How the user says it.
        subjects: Variants of the type, the original last; each stands in its question.
        questions: Of these.
        targets: Variants of the answer, the original last.
        paraphrased: The direct question in other words; empty where a set has none.
        implicit: A question that it helps to answer; likewise.
        recommendation: A question for something to buy; likewise.
    """

    user: str
    kind: str
    sentence: str
    subjects: tuple[str, ...]
    questions: tuple[str, ...]
    targets: tuple[str, ...]
    paraphrased: str = ""
    implicit: str = ""
    recommendation: str = ""

    @property
    def target(self) -> str:
        """The original answer."""
        return self.targets[-1]

    def question(self, kind: str) -> str:
        """The question of one of :data:`KINDS`; empty where there is none."""
        asked = (self.questions[-1], self.paraphrased, self.implicit, self.recommendation)
        return asked[KINDS.index(kind)]


@lru_cache(maxsize=1)
def invented_preferences() -> tuple[Preference, ...]:
    """The kit's own: a hundred users with one preference each, types taking turns.

    The first n of them are spread over all types.
    """
    types = json.loads(TABLE.read_text(encoding="utf-8"))
    return tuple(_invented(entry, at) for at in range(len(types[0]["values"])) for entry in types)


def _invented(entry: Mapping[str, Any], at: int) -> Preference:
    """Number ``at`` of a type: its templates with the value put in."""
    value, kind = entry["values"][at], entry["subjects"][-1]
    return Preference(
        user=f"{kind} {at + 1}",
        kind=kind,
        sentence=entry["sentence"].format(v=value),
        subjects=tuple(entry["subjects"]),
        questions=tuple(entry["ask"].format(s=subject) for subject in entry["subjects"]),
        targets=(*(form.format(v=value) for form in entry["targets"]), value),
        paraphrased=entry["paraphrased"],
        implicit=entry["implicit"],
        recommendation=entry["recommendation"],
    )


def persons(preferences: Sequence[Preference], size: int = 10) -> list[list[Preference]]:
    """People with several preferences: ``size`` that follow each other make one, types distinct.

    Raises:
        UserError: Two preferences of one person are of one type.
    """
    people = [list(preferences[at : at + size]) for at in range(0, len(preferences), size)]
    people = [own for own in people if len(own) == size]
    for own in people:
        if len({preference.kind for preference in own}) < size:
            raise UserError(
                f"User {own[0].user} would get two preferences of one type; order the set so that "
                f"{size} neighbours differ in type."
            )
    return people


def in_turns(preferences: Sequence[Preference]) -> list[Preference]:
    """Types taking turns, each in its own order, so that the first n are spread over them.

    The invented ones stand so already; files are often sorted by type.
    """
    count: dict[str, int] = {}
    turns = []
    for preference in preferences:
        count[preference.kind] = count.get(preference.kind, 0) + 1
        turns.append(count[preference.kind])
    order = sorted(range(len(turns)), key=lambda at: turns[at])  # stable
    return [preferences[at] for at in order]


def read_preferences(path: Path) -> list[Preference]:
    """A local file of UPQA's or PrefEval's shape, or the one such file of a folder.

    Args:
        path: A ``.json`` file with a list of rows. UPQA: flat rows, or clusters whose lists have
            the original last. PrefEval: rows with ``preference``, ``question``, ``subject`` and
            ``target``.

    Raises:
        UserError: No such file, another shape, or a row that cannot be asked.
    """
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if len(files) != 1:
            raise UserError(
                f"{path.name} holds {len(files)} .json files; name the one that shall be read."
            )
        path = files[0]
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"There is no file {path}; give a .json file of preferences.") from error
    except ValueError as error:
        raise UserError(f"{path.name} is no JSON ({error}); take the file again.") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path.name} is no list of rows; give a file of UPQA or PrefEval.")
    return [_read(row, at, path.name) for at, row in enumerate(rows, start=1)]


def _read(row: Mapping[str, Any], at: int, file: str) -> Preference:
    where = f"{file}, row {at}"
    upqa = "attribute_type" in row
    names = ("attribute_type", "input_attribute") if upqa else ("subject", "preference")
    missing = [name for name in (*names, "question", "target") if name not in row]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; give a file of UPQA or PrefEval.")
    subjects, questions, targets = (
        tuple(_texts(row[name], where, name)) for name in (names[0], "question", "target")
    )
    if not len(subjects) == len(questions) == len(targets):
        raise UserError(
            f"{where} has {len(subjects)} subjects, {len(questions)} questions and {len(targets)} "
            "targets; a cluster needs one of each per variant."
        )
    for subject, question in zip(subjects, questions, strict=True):
        if subject.lower() not in question.lower():
            raise UserError(
                f"{where}: the subject {subject!r} does not stand in the question {question!r}; "
                "an edit needs a question that names its subject."
            )
    others = ("question_paraphrased", "implicit_question", "product_recommendation_question")
    return Preference(
        str(at), str(row["topic"]) if "topic" in row else subjects[-1], str(row[names[1]]),
        subjects, questions, targets, *(str(row.get(name, "")) for name in others),
    )  # fmt: skip


def _texts(value: Any, where: str, name: str) -> list[str]:
    """One or several texts, none of them empty."""
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise UserError(f"{where}: {name} is empty or no text; correct the row.")
    return [text.strip() for text in found]
