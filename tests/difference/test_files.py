"""Local files: Amazon's shape and LaMP-2's movies."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.core.task import HistoryItem, Query, User, official_input
from chameleon_lib.difference import Corpus, Sample, VectorMaker
from chameleon_lib.difference.amazon import Filter, read_amazon
from chameleon_lib.difference.lamp2 import TagWording, corpus_of
from chameleon_lib.difference.world import BagEmbedder
from chameleon_lib.errors import UserError
from chameleon_lib.kit.shared_items import has_reviews

KEEP = Filter(
    text=10, description=(5, 60), item_users=3, user_reviews=(6, 20), inputs=3, profile_users=2,
    profile_reviews=2,
)  # fmt: skip


def rows(users: int = 6, items: int = 8) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    reviews = [
        {
            "user_id": f"U{u}", "parent_asin": f"B{i}", "asin": "x", "rating": 1 + (u + i) % 5,
            "title": f"title {u}", "text": f"review of thing {i} by {u}, at length",
            "timestamp": 1000 * i + u, "verified_purchase": True, "images": [],
        }
        for u in range(users)
        for i in range(items)
    ]  # fmt: skip
    meta = [
        {"parent_asin": f"B{i}", "title": f"thing {i}", "description": ["a thing", f"of {i}"]}
        for i in range(items)
    ]
    return reviews, meta


def write(folder: Path, reviews: list[Any], meta: list[Any], packed: bool = False) -> Path:
    for name, lines in (("Things", reviews), ("meta_Things", meta)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        path = folder / f"{name}.jsonl{'.gz' * packed}"
        path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_is_read(tmp_path: Path, packed: bool) -> None:
    write(tmp_path, *rows(), packed)
    assert has_reviews(tmp_path)
    found = read_amazon(tmp_path, KEEP)
    assert found.notes == [] and len(found.corpus.reviews) == 48
    assert found.corpus.items["B1"].description == "a thing of 1"
    own = found.corpus.by_user["U2"]
    assert [review.item for review in own] == [f"B{i}" for i in range(8)]
    assert (own[1].rating, own[1].title, own[1].time) == (4.0, "title 2", 1002)


def test_what_is_dropped_is_counted_by_reason(tmp_path: Path) -> None:
    reviews, meta = rows()
    reviews += [
        reviews[0],
        {**reviews[1], "text": "short"},
        {**reviews[2], "parent_asin": "B99"},
        {**reviews[3], "rating": None},
        {**reviews[4], "user_id": "alone"},
        {name: value for name, value in reviews[5].items() if name not in ("parent_asin", "asin")},
        {name: value for name, value in reviews[6].items() if name != "user_id"},
    ]
    *notes, last = read_amazon(write(tmp_path, reviews, [*meta, {"title": "no id"}]), KEEP).notes
    assert last == "1 items without parent_asin (or asin) are left out."
    assert sorted(note.split(" reviews ")[0] for note in notes) == ["1"] * 4 + ["3"]
    assert {note.split(" reviews ", 1)[1] for note in notes} == {
        "of an item or with a text that their user had before are left out.",
        "shorter than 10 characters are left out.",
        "of an item without a description of 5 to 60 characters are left out.",
        "without user, item, rating, title or time are left out.",
        "of an item or user with too few reviews are left out.",
    }


def test_conditions_are_repeated_until_nothing_changes(tmp_path: Path) -> None:
    reviews, meta = rows()
    # Without U5 of few reviews, item B7 has two users, and without B7 nobody else falls.
    few = [r for r in reviews if r["user_id"] != "U5" or r["parent_asin"] in ("B6", "B7")]
    few = [r for r in few if r["parent_asin"] != "B7" or r["user_id"] in ("U0", "U1", "U5")]
    found = read_amazon(write(tmp_path, few, meta), KEEP).corpus
    assert set(found.by_user) == {f"U{u}" for u in range(5)} and "B7" not in found.items


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[0].clear(), "has no user with 6 reviews"),
        (lambda rows: rows[0].__delitem__(slice(8, None)), "3 people reviewed"),
        (lambda rows: rows[0][0].pop("parent_asin") + rows[0][0].pop("asin"), "parent_asin .or"),
        (lambda rows: rows[1].insert(0, {"title": "no id"}), "line 1 is no item"),
        (lambda rows: rows[0][0].update(timestamp="soon"), "must be numbers"),
        (lambda rows: rows[0].append("text"), "line 49; it must have one JSON object per line"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, change: Any, words: str) -> None:
    found = rows()
    change(found)
    with pytest.raises(UserError, match=words) as error:
        read_amazon(write(tmp_path, *found), KEEP)
    assert "\n" not in str(error.value)


def test_a_folder_needs_one_file_of_each(tmp_path: Path) -> None:
    assert not has_reviews(tmp_path)
    with pytest.raises(UserError, match="0 files of reviews and 0 of items"):
        read_amazon(tmp_path)
    with pytest.raises(UserError, match="There is no folder"):
        read_amazon(tmp_path / "none")
    write(tmp_path, *rows())
    (tmp_path / "More.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="2 files of reviews"):
        read_amazon(tmp_path)
    (tmp_path / "Things.jsonl").unlink()
    with pytest.raises(UserError, match="More.jsonl.gz cannot be read"):
        read_amazon(tmp_path)


# --- LaMP-2 ---------------------------------------------------------------------------------------


def person(name: str, tags: dict[str, str], asked: str, gold: str | None = "comedy") -> User:
    history = tuple(
        HistoryItem(f"{name}{at}", text, tag) for at, (text, tag) in enumerate(tags.items())
    )
    query = Query(name, asked, official_input("LaMP_2", asked), gold)
    return User(name, "LaMP_2", history, (query,))


def test_movies_of_one_description_are_one_item_and_the_difference_is_of_tags() -> None:
    users = [
        person("1", {"A robot  sings": "sci-fi", "A bride": "romance"}, "A duke"),
        person("2", {"a Robot sings": "comedy", "A bride": "romance"}, "A wizard"),
        person("3", {"An elf": "fantasy", "a robot sings": "sci-fi"}, "A clown"),
    ]
    corpus = corpus_of(users)
    assert len(corpus.by_item["a robot sings"]) == 3
    maker = VectorMaker(
        corpus, BagEmbedder(32), text_of=lambda r: f"{corpus.items[r.item].title} {r.text}"
    )
    test = {s.owner: maker.of(s) for s in (last(corpus, user) for user in "123")}
    assert [r.item for r in test["1"].sources] == ["a bride", "a robot sings"]
    assert not test["1"].difference[0].any() and test["1"].difference[1].any()
    assert [r.item for r in test["3"].sources] == ["a robot sings"]  # nobody else's elf


def last(corpus: Corpus, user: str) -> Sample:
    review = corpus.by_user[user][-1]
    return Sample(review, corpus.before(user, review))


def test_lamp_2_needs_shared_movies_and_gold_tags() -> None:
    with pytest.raises(UserError, match="tagged by two"):
        corpus_of([person("1", {"A robot": "sci-fi"}, "A duke")])
    with pytest.raises(UserError, match="no gold tag"):
        corpus_of([person("1", {"A robot": "sci-fi"}, "A duke", None)])
    say = TagWording()
    corpus = corpus_of([person(n, {"A robot": "sci-fi"}, "A duke") for n in "12"])
    item = corpus.items["a duke"]
    assert "comedy" in say.item(item) and "A duke" in say.item(item)
