"""Folders of reviews of shared items: which they are, and what notebook 11 costs on one.

Its trainings are stages of no other notebook, so they are not scaled from the counted demo run but
follow from the recipe. With n samples to train on, v to select by and t to test, a prompt of L
tokens and a review of A, every trained row costs in each of E epochs

    forward (n + v)(L + A)        backward n(L + A), through a frozen model

and writes and scores the t samples. L is what the first lines of the files have: an item's
description and as many past reviews as a prompt has places for. Standard library only: a plan is
printed before anything is installed.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from chameleon_lib.errors import UserError
from chameleon_lib.kit.flops import Tokens, Work

SUFFIXES = (".jsonl", ".jsonl.gz")
LOOKED_AT = 1000  # lines of each file whose mean length is taken
CHARACTERS = 4  # of a token
# As the study has them: tests hold these against it.
BLOCKS, EPOCHS, VALID, MOST = 8, 5, 512, 3072  # past reviews, recipe, samples, tokens of a prompt
ROWS, SEEDS = 6, 3  # that are trained
PLACES = 60  # tokens of a block's words and soft prompts
PEERS, SAID = 4, 256  # reviews that DPL compares one with, tokens it says of a difference


class Part(NamedTuple):
    """Work of one stage of the store."""

    stage: str
    units: int
    work: Work
    written: float  # of its tokens those that follow one another


@dataclass(frozen=True)
class Reviews:
    """Mean tokens of what a folder holds.

    Attributes:
        review: Of a review's text.
        item: Of an item's title and description.
    """

    review: float
    item: float

    @property
    def prompt(self) -> float:
        """Of a prompt with all of its past reviews."""
        whole = self.item + BLOCKS * (self.review + self.item + PLACES)
        return min(float(MOST), whole)

    def parts(self, train: int, test: int, seeds: int) -> list[Part]:
        """What a run of so many samples and seeds asks of its model."""
        valid, answer = min(VALID, train), self.review
        alone = self.item + PLACES  # tokens of a prompt that knows no user
        trained = ROWS * seeds
        learned = trained * EPOCHS * train
        tested = (trained + seeds) * test  # one of the rows is asked with others' vectors, too
        seen = learned + trained * EPOCHS * valid + 2 * tested
        compared = BLOCKS * (self.item + (1 + PEERS) * answer)
        told = BLOCKS * SAID + 2 * SAID  # of every user: differences, and a summary of twice that
        asked, steps = test * BLOCKS, 10
        return [
            Part(
                "difference_trained", trained,
                Work(
                    Tokens(round(self.prompt * seen), round(answer * seen)),
                    Tokens(round(self.prompt * learned), round(answer * learned)),
                ),
                answer * tested,
            ),
            Part(
                "difference_told", 2,  # nothing, and DPL's summary
                Work(Tokens(round(test * (4 * alone + compared + self.prompt)),
                            round(test * (4 * answer + told)))),
                test * (2 * answer + told),
            ),
            Part(
                "difference_edits", 2 * test,  # plain answers of past reviews serve both
                Work(Tokens(round(asked * 3 * alone + test * (self.prompt + 4 * alone)),
                            round(asked * 4 * answer + test * 4 * answer
                                  + steps * asked * 2 * answer)),
                     Tokens(0, round(steps * asked * 2 * answer))),
                (2 * asked + 2 * test) * answer,
            ),
        ]  # fmt: skip


def files_of(folder: Path) -> list[Path]:
    """The files of a folder that may hold reviews or items.

    Raises:
        UserError: No such folder.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; give one with reviews and their items.")
    return sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))


def has_reviews(folder: Path) -> bool:
    """Whether a folder looks like one of Amazon's: a file of reviews and one of items."""
    names = [path.name for path in files_of(folder)]
    meta = [name for name in names if name.startswith("meta")]
    return bool(meta) and len(meta) < len(names)


def pair_of(folder: Path) -> tuple[Path, Path]:
    """The file of reviews and that of items.

    Raises:
        UserError: Not one of each.
    """
    files = files_of(folder)
    parts = [[p for p in files if p.name.startswith("meta") == meta] for meta in (False, True)]
    if [len(part) for part in parts] != [1, 1]:
        raise UserError(
            f"{folder} has {len(parts[0])} files of reviews and {len(parts[1])} of items (named "
            f"meta...); give one each, as {' or '.join(SUFFIXES)}."
        )
    return parts[0][0], parts[1][0]


def lines_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every line's object with its place.

    Raises:
        UserError: A line that is no object, or a file that cannot be unpacked.
    """
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(
            encoding="utf-8"
        ) as lines:
            for number, line in enumerate(lines, start=1):  # noqa: B007
                if line.strip():
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise ValueError("no object")
                    yield f"{path.name}, line {number}", record
    except (ValueError, OSError, EOFError, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path.name} cannot be read at line {number or 1}; it must have one JSON object per "
            "line."
        ) from error


def description_of(record: dict[str, Any]) -> str:
    """An item's description, on one line."""
    told = record.get("description") or ""
    return " ".join(" ".join(told if isinstance(told, list) else [str(told)]).split())


def measure(folder: Path) -> Reviews:
    """Mean lengths of the first lines of a folder's two files.

    Raises:
        UserError: Files that cannot be read.
    """
    reviews, items = pair_of(folder)
    said = [len(str(r.get("text") or "")) for _, r in islice(lines_of(reviews), LOOKED_AT)]
    told = [len(description_of(i)) + len(str(i.get("title") or ""))
            for _, i in islice(lines_of(items), LOOKED_AT)]  # fmt: skip
    if not (said and told):
        raise UserError(f"{(items if said else reviews).name} is empty; give reviews and items.")
    mean = [sum(lengths) / len(lengths) / CHARACTERS for lengths in (said, told)]
    return Reviews(max(1.0, mean[0]), max(1.0, mean[1]))
