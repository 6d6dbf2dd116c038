"""The official LaMP files: where they lie on the server, and what is known of them beforehand.

This table is the only source of paths. Two traps stand behind it: the movies of LaMP-2 lie under
``new/`` (without it the server still has the old news task), and no other task has such a folder.
Labels of the test users are withheld, so there is no ``test_outputs.json`` to ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chameleon_lib.errors import UserError
from chameleon_lib.lamp.tasks import TASKS, get_task

BASE_URL = "https://ciir.cs.umass.edu/downloads/LaMP"
INDEX_PAGE = "https://lamp-benchmark.github.io/download"
SPLITS = ("user", "time")
PARTS = ("train", "dev", "test")

# Far below any real record, far above what a page of HTML in place of a list could reach.
_SMALLEST = {"questions": 200, "outputs": 20}  # bytes per record

# (split, task) -> records of train, dev and test. A minus marks a published figure that nobody
# has confirmed against a full download: another number is told, not refused.
_RECORDS: dict[tuple[str, str], tuple[int, int, int]] = {
    ("user", "LaMP_2"): (-3820, 692, -870),
    ("user", "LaMP_3"): (20000, 2500, -2500),
    ("user", "LaMP_7"): (10437, 1500, 1496),
    ("time", "LaMP_2"): (-5073, -1410, -1557),
    ("time", "LaMP_3"): (-20000, -2500, -2500),
    ("time", "LaMP_7"): (-13437, -1498, -1500),
}

# Sizes in bytes that were seen; a lower bound on what a download needs, not a condition.
_BYTES = {
    "LaMP_2/new/dev/dev_questions.json": 9_493_217,
    "LaMP_2/new/dev/dev_outputs.json": 27_502,
    "LaMP_3/dev/dev_questions.json": 401_034_862,
    "LaMP_3/dev/dev_outputs.json": 81_416,
}


@dataclass(frozen=True, slots=True)
class OfficialFile:
    """One file of the benchmark.

    Attributes:
        task: Task name with an underscore.
        part: "train", "dev" or "test".
        kind: "questions" or "outputs".
        path: Path below the base URL, and below the folder it is stored in.
        records: Number of questions or golds.
        confirmed: Whether that number was checked on the file itself.
        bytes: Size that was seen, None where it was not noted.
    """

    task: str
    part: str
    kind: str
    path: str
    records: int
    confirmed: bool
    bytes: int | None

    @property
    def smallest(self) -> int:
        """Bytes below which the file cannot be whole."""
        return self.records * _SMALLEST[self.kind]

    @property
    def partner(self) -> str:
        """Path of the other file of the pair of questions and outputs."""
        other = "outputs" if self.kind == "questions" else "questions"
        return self.path.replace(f"_{self.kind}.json", f"_{other}.json")


def folder_of(split: str) -> str:
    """Folder of a split below the download folder: what ``--data`` takes."""
    return "time" if split == "time" else ""


def _stem(split: str, task: str) -> str:
    parts = [folder_of(split), task, "new" if task == "LaMP_2" else ""]
    return "/".join(part for part in parts if part)


def official_files(
    tasks: Sequence[str] = (), split: str = "user", parts: Sequence[str] = ()
) -> tuple[OfficialFile, ...]:
    """The files of a split, questions before their outputs.

    Args:
        tasks: Task names, with underscore or hyphen; all three if empty.
        split: "user" (disjoint users, the paper's) or "time" (the same users in all parts).
        parts: Some of `PARTS`; all if empty.

    Raises:
        UserError: An unknown task, split or part.
    """
    if split not in SPLITS:
        raise UserError(f"Unknown split {split!r}: use one of {', '.join(SPLITS)}.")
    for part in parts:
        if part not in PARTS:
            raise UserError(f"Unknown part {part!r}: use one of {', '.join(PARTS)}.")
    names = {get_task(task).name for task in tasks} or set(TASKS)
    found = []
    for task in (name for name in TASKS if name in names):
        for part, records in zip(PARTS, _RECORDS[split, task], strict=True):
            if parts and part not in parts:
                continue
            for kind in ("questions", "outputs") if part != "test" else ("questions",):
                path = f"{_stem(split, task)}/{part}/{part}_{kind}.json"
                found.append(
                    OfficialFile(
                        task, part, kind, path, abs(records), records > 0, _BYTES.get(path)
                    )
                )
    return tuple(found)
