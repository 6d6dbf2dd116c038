"""Preferences: the invented ones, local files of UPQA and PrefEval, and what stands in neither."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.data.preferences import (
    KINDS,
    VARIANTS,
    in_turns,
    invented_preferences,
    persons,
    read_preferences,
)
from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import package_dir, root

LOCAL = root().parent / "shared" / "data" / "upqa"
local = pytest.mark.skipif(not LOCAL.is_dir(), reason="local evaluation data not present")
FILES = sorted(LOCAL.rglob("*.json"))


def test_the_invented_ones_have_ten_types_of_ten_and_nine_variants_of_each() -> None:
    found = invented_preferences()
    assert Counter(p.kind for p in found) == dict.fromkeys((p.kind for p in found), 10)
    assert len({p.kind for p in found}) == 10 and len({p.user for p in found}) == 100
    for p in found:
        for variants in (p.subjects, p.questions, p.targets):
            assert len(variants) == VARIANTS == len({text.casefold() for text in variants})
        assert all(s in q for s, q in zip(p.subjects, p.questions, strict=True))
        assert all(len(s.split()) <= 3 for s in p.subjects)
        assert all(len(t.split()) <= 4 and p.target in t for t in p.targets)
        assert p.target in p.sentence and p.subjects[-1] == p.kind
        asked = [p.question(kind) for kind in KINDS]
        assert len(set(asked)) == len(KINDS)
        assert not any(p.target in question for question in asked)
        # Only the direct and the recommendation question may name the type.
        assert p.kind not in p.implicit
    assert len({(p.kind, p.target) for p in found}) == 100


def test_ten_neighbours_make_a_person_with_ten_types() -> None:
    found = invented_preferences()
    people = persons(found)
    assert [len({p.kind for p in own}) for own in people] == [10] * 10
    assert [p for own in people for p in own] == list(found)
    assert len(persons(found[:25])) == 2
    with pytest.raises(UserError, match="two preferences of one type"):
        persons([found[0], found[10]], size=2)


ROW: dict[str, Any] = {
    "input_attribute": "I restore old radios.", "attribute_type": "hobby",
    "question": "What's my hobby?", "question_paraphrased": "Which pastime do I enjoy?",
    "implicit_question": "What should I do on a free Sunday?",
    "product_recommendation_question": "What tool would suit my hobby?",
    "target": "restoring radios",
}  # fmt: skip
PREFEVAL: dict[str, Any] = {
    "topic": "travel", "preference": "I never fly.", "question": "How do I get to Rome?",
    "subject": "Rome", "target": "by train",
}  # fmt: skip


def written(folder: Path, rows: object) -> Path:
    path = folder / "rows.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return path


def test_rows_of_both_shapes_are_read(tmp_path: Path) -> None:
    cluster = {
        **ROW, "attribute_type": ["pastime", "hobby"],
        "question": ["What's my pastime?", "What's my hobby?"], "target": ["radios", "old radios"],
    }  # fmt: skip
    path = written(tmp_path, [ROW, cluster, PREFEVAL])
    flat, many, explicit = read_preferences(path)
    assert read_preferences(tmp_path) == [flat, many, explicit]
    assert (flat.kind, flat.target, flat.user) == ("hobby", "restoring radios", "1")
    assert [flat.question(kind) for kind in KINDS] == list(ROW.values())[2:6]
    assert many.subjects == ("pastime", "hobby") and many.target == "old radios"
    assert explicit.kind == "travel" and explicit.sentence == "I never fly."
    assert explicit.question("implicit") == ""


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("{", "rows.json is no JSON"),
        ([], "no list of rows"),
        ([{"question": "x"}], "row 1 lacks subject, preference, target"),
        ([ROW, {**ROW, "target": " "}], "row 2: target is empty"),
        ([{**ROW, "question": "What do I do?"}], "row 1: the subject 'hobby' does not stand in"),
        ([{**ROW, "target": ["a", "b"]}], "1 subjects, 1 questions and 2 targets"),
    ],
)
def test_what_cannot_be_read_is_told_with_file_and_row(
    tmp_path: Path, rows: object, told: str
) -> None:
    with pytest.raises(UserError, match=told) as caught:
        read_preferences(written(tmp_path, rows))
    assert "rows.json" in str(caught.value)


def test_types_take_turns_in_a_file_that_is_sorted_by_them() -> None:
    own = list(invented_preferences())
    assert in_turns(own) == own
    by_type = sorted(own, key=lambda p: p.kind)
    turned = in_turns(by_type)
    assert len({p.kind for p in turned[:10]}) == 10 and set(turned) == set(own)
    assert [p for p in turned if p.kind == "hobby"] == [p for p in own if p.kind == "hobby"]


def test_a_missing_file_and_a_folder_of_many_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no file"):
        read_preferences(tmp_path / "no.json")
    with pytest.raises(UserError, match="holds 0 .json files"):
        read_preferences(tmp_path)


@local
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_local_files_run_through(path: Path) -> None:
    found = read_preferences(path)
    assert len(found) >= 100 and all(p.target and p.sentence for p in found)


@local
def test_no_text_of_the_local_files_stands_in_the_kit() -> None:
    texts = {
        text.casefold() for path in FILES for text in strings(json.loads(path.read_text("utf-8")))
    }
    own = invented_preferences()
    ours = {p.question(kind).casefold() for p in own for kind in KINDS[1:]}
    ours |= {text.casefold() for p in own for text in (p.sentence, p.target)}
    # Bare questions such as "What's my hobby?" follow from the format; nothing else may be shared.
    assert not {text for text in ours & texts if len(text.split()) > 2}
    long = {text for text in texts if len(text.split()) >= 6}
    assert len(long) > 1000
    files = [
        *package_dir().rglob("*.json"),
        *package_dir().rglob("*.csv"),
        *package_dir().rglob("*.py"),
    ]
    files += [*(root() / "notebooks").glob("*.ipynb"), *(root() / "tests" / "editors").glob("*.py")]
    for path in files:
        content = path.read_text(encoding="utf-8").casefold()
        assert not [text for text in long if text in content], path


def strings(value: Any) -> Iterator[str]:
    """All texts of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)
