"""What an editor is asked for: a question, the subject in it, and the answer it shall get.

A preference is a cluster of such requests (section 2.2 of the paper's method): variants of subject,
question and answer, the original ones last.
"""

from __future__ import annotations

from dataclasses import dataclass

from chameleon_lib.data.preferences import Preference
from chameleon_lib.errors import UserError


@dataclass(frozen=True, slots=True)
class Request:
    """One edit.

    Attributes:
        question: What is asked, as a user would; holds the subject.
        subject: What it is about, such as "hobby"; the editors look for its last occurrence.
        target: The answer, without a leading blank.

    Raises:
        UserError: No subject in the question, or an empty target.
    """

    question: str
    subject: str
    target: str

    def __post_init__(self) -> None:
        if not self.subject.strip() or self.subject.lower() not in self.question.lower():
            raise UserError(
                f"The subject {self.subject!r} does not stand in the question {self.question!r}; "
                "an edit needs a question that names its subject."
            )
        if not self.target.strip():
            raise UserError(
                f"The target of the question {self.question!r} is empty; give the answer that the "
                "edit shall teach."
            )


def requests_of(preference: Preference, k: int = 1, *, same_target: bool = True) -> list[Request]:
    """The last ``k`` variants of a preference, the original last.

    Args:
        preference: With ``k`` or more variants.
        k: Size of the cluster; 1 is the original question alone.
        same_target: Teach the original answer in every variant, and not each its own.

    Raises:
        UserError: Fewer than ``k`` variants, or two of the ``k`` questions alike.
    """
    if not 1 <= k <= len(preference.questions):
        raise UserError(
            f"The preference of user {preference.user} has {len(preference.questions)} variants; "
            f"a cluster of {k} cannot be made of them."
        )
    found = [
        Request(question, subject, preference.targets[-1] if same_target else target)
        for subject, question, target in zip(
            preference.subjects, preference.questions, preference.targets, strict=True
        )
    ][-k:]
    if len({request.question.casefold() for request in found}) < k:
        raise UserError(
            f"The last {k} variants of user {preference.user} hold one question twice; give "
            "different questions, or a smaller cluster."
        )
    return found
