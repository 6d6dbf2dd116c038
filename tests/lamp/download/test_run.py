"""Official files from a server that may misbehave, into a folder that loads as it is."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit.sources import SourceTree
from chameleon_lib.lamp import find_split, load_users
from chameleon_lib.lamp.download import LOCK, Manners, OfficialFile, download, official_files
from chameleon_lib.lamp.download.connection import check_base_url
from tests.lamp.download.server import (
    Server,
    cut_at,
    outputs_of,
    page,
    questions_of,
    status,
)
from tests.lamp.helpers import SHARED_DATA, needs_shared_data, raw_sample

QUICK = Manners(timeout=0.5, attempts=2, pause=0.01)
TASKS = ("LaMP_2", "LaMP_3", "LaMP_7")
COUNT = 40


class Heard:
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def progress(self, what: str, unit: str, done: int, total: int | None) -> None:
        assert what and unit in ("bytes", "records") and done >= 0 and total != 0


def small(files: tuple[OfficialFile, ...]) -> tuple[OfficialFile, ...]:
    """The same files with few records."""
    return tuple(replace(file, records=COUNT, confirmed=True) for file in files)


def serve(server: Server, files: tuple[OfficialFile, ...]) -> None:
    for file in files:
        make = questions_of if file.kind == "questions" else outputs_of
        server.files[f"/{file.path}"] = make(file.task, file.part, COUNT)


def get(
    server: Server, folder: Path, files: tuple[OfficialFile, ...], accept: bool = False
) -> tuple[int, Heard]:
    heard = Heard()
    fetched = download(
        folder, files, base_url=server.url + "/", manners=QUICK, accept_changed=accept,
        listener=heard,
    )  # fmt: skip
    return fetched, heard


def stored(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def refused(server: Server, folder: Path, files: tuple[OfficialFile, ...], match: str) -> None:
    """One sentence, and nothing half-written."""
    before = stored(folder)
    with pytest.raises(UserError, match=match) as caught:
        get(server, folder, files)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence and ".partial" not in sentence
    assert stored(folder) == before


DEV_3 = small(official_files(["LaMP-3"], "user", ["dev"]))


@pytest.mark.parametrize("split", ["user", "time"])
def test_the_table_follows_the_documented_layout(split: str) -> None:
    paths = [file.path for file in official_files((), split)]
    root = "time/" if split == "time" else ""
    assert len(paths) == 15 and all(path.startswith(root + "LaMP_") for path in paths)
    assert [path for path in paths if "outputs" in path and "test" in path] == []
    assert {path for path in paths if "/new/" in path} == {
        path for path in paths if "LaMP_2/" in path
    }
    assert f"{root}LaMP_2/new/dev/dev_questions.json" in paths
    assert f"{root}LaMP_3/train/train_outputs.json" in paths


def test_the_table_knows_the_documented_numbers() -> None:
    known = {file.path: file for file in official_files()}
    assert known["LaMP_3/dev/dev_questions.json"].bytes == 401_034_862
    assert known["LaMP_2/new/dev/dev_questions.json"].records == 692
    assert [known[f"LaMP_7/{p}/{p}_questions.json"].records for p in ("train", "dev", "test")] == [
        10_437, 1_500, 1_496,
    ]  # fmt: skip
    assert not known["LaMP_2/new/train/train_questions.json"].confirmed
    assert all(file.smallest < file.bytes for file in known.values() if file.bytes)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [((["LaMP_9"],), "Unknown task"), (([], "items"), "Unknown split"),
     (([], "user", ["eval"]), "Unknown part")],
)  # fmt: skip
def test_unknown_names_are_refused(arguments: tuple[object, ...], match: str) -> None:
    with pytest.raises(UserError, match=match):
        official_files(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["user", "time"])
def test_a_downloaded_folder_loads_as_it_is(
    server: Server, tmp_path: Path, task: str, split: str
) -> None:
    files = small(official_files([task], split))
    serve(server, files)
    fetched, _ = get(server, tmp_path, files)
    assert fetched == 5
    root = tmp_path / "time" if split == "time" else tmp_path
    for part in ("train", "dev", "test"):
        questions, outputs = find_split(root, task, part)
        users = load_users(questions, outputs, task)
        golds = [query.gold for user in users for query in user.queries]
        assert len(golds) == COUNT
        assert (outputs is None) == (part == "test") == (set(golds) == {None})


def test_a_second_start_verifies_and_asks_for_nothing(server: Server, tmp_path: Path) -> None:
    serve(server, DEV_3)
    get(server, tmp_path, DEV_3)
    lock = (tmp_path / LOCK).read_bytes()
    asked = len(server.seen)
    fetched, _ = get(server, tmp_path, DEV_3)
    assert fetched == 0 and len(server.seen) == asked and (tmp_path / LOCK).read_bytes() == lock


def test_the_lock_names_address_size_hash_and_records_and_no_date(
    server: Server, tmp_path: Path
) -> None:
    serve(server, DEV_3)
    get(server, tmp_path, DEV_3)
    text = (tmp_path / LOCK).read_text()
    entries = json.loads(text)["files"]
    assert list(entries) == [file.path for file in sorted(DEV_3, key=lambda f: f.path)]
    for path, entry in entries.items():
        assert entry["url"] == f"{server.url}/{path}" and entry["records"] == COUNT
        assert entry["bytes"] == (tmp_path / path).stat().st_size and len(entry["sha256"]) == 64
    assert not re.search(r"\d{4}-\d\d-\d\d|\d\d:\d\d", text.replace(server.url, ""))
    get(server, tmp_path / "again", DEV_3)
    assert (tmp_path / "again" / LOCK).read_text() == text


def test_a_file_that_changed_on_disk_is_said_and_kept_on_request(
    server: Server, tmp_path: Path
) -> None:
    serve(server, DEV_3)
    get(server, tmp_path, DEV_3)
    changed = tmp_path / DEV_3[0].path
    changed.write_bytes(changed.read_bytes().replace(b"query dev 3", b"query dev X"))
    refused(server, tmp_path, DEV_3, "not the file that was recorded .*delete it")
    fetched, heard = get(server, tmp_path, DEV_3, accept=True)
    assert fetched == 0 and "found in place" in "".join(heard.said)
    assert get(server, tmp_path, DEV_3)[0] == 0


def test_a_file_that_changed_on_the_server_is_said_and_taken_on_request(
    server: Server, tmp_path: Path
) -> None:
    serve(server, DEV_3)
    get(server, tmp_path, DEV_3)
    old = (tmp_path / LOCK).read_text()
    (tmp_path / DEV_3[0].path).unlink()
    path = f"/{DEV_3[0].path}"
    server.files[path] = server.files[path].replace(b"query dev 3", b"query dev X")
    with pytest.raises(UserError, match="changed on the server; take the new one"):
        get(server, tmp_path, DEV_3)
    assert (tmp_path / LOCK).read_text() == old and not (tmp_path / DEV_3[0].path).exists()
    asked = len(server.seen)
    assert get(server, tmp_path, DEV_3, accept=True)[0] == 1
    assert len(server.seen) == asked, "the bytes that had arrived are used"
    assert (tmp_path / LOCK).read_text() != old


def test_files_already_in_place_are_checked_and_recorded(server: Server, tmp_path: Path) -> None:
    serve(server, DEV_3)
    for file in DEV_3:
        target = tmp_path / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(server.files[f"/{file.path}"])
    assert get(server, tmp_path, DEV_3)[0] == 0 and server.seen == []
    entries = json.loads((tmp_path / LOCK).read_text())["files"]
    assert [entry["url"] for entry in entries.values()] == [None, None]
    (tmp_path / LOCK).unlink()
    (tmp_path / DEV_3[1].path).write_text("{}")
    with pytest.raises(UserError, match="dev_outputs.json has no list of golds"):
        get(server, tmp_path, DEV_3)


def old_news() -> bytes:
    record = {
        "id": "11",
        "input": "Which category does this article relate to among the following categories?",
        "profile": [{"id": "110", "title": "t", "text": "x" * 40, "category": "politics"}],
    }
    return json.dumps([{**record, "id": f"11{i}"} for i in range(COUNT)]).encode()


def questions_with(change: dict[str, object]) -> bytes:
    records = [raw_sample("LaMP_3", f"1{i}") for i in range(COUNT)]
    records[7] |= change
    return json.dumps(records).encode()


GOOD = questions_of("LaMP_3", "dev", COUNT)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (GOOD[:-900], "is cut off"),
        (GOOD + b" trailing words", "text after its JSON list"),
        (b"[" + b"no json " * 2000 + b"]", "no object at record number 0"),
        (outputs_of("LaMP_3", "dev", 1000), "is not a JSON list"),
        (b"[" + b" " * 9000 + b"]", "empty list"),
        (GOOD.replace(b"query dev 3", b"query \xff\xfe 3"), "not UTF-8"),
        (questions_of("LaMP_7", "dev", COUNT), "has no 'score'"),
        (questions_with({"id": "13"}), "holds record '13' twice"),
        (questions_with({"profile": []}), "record '17' has an empty profile"),
        (questions_of("LaMP_3", "dev", COUNT - 1), r"holds 39 questions, and LaMP documents 40"),
    ],
)
def test_a_whole_file_that_is_no_lamp_file_is_refused_and_removed(
    server: Server, tmp_path: Path, content: bytes, match: str
) -> None:
    serve(server, DEV_3)
    server.files[f"/{DEV_3[0].path}"] = content
    refused(server, tmp_path, DEV_3, f"http://127.0.0.1:.*dev_questions.json.*{match}")


def test_the_old_news_task_under_the_right_name_is_refused(server: Server, tmp_path: Path) -> None:
    files = small(official_files(["LaMP_2"], "user", ["dev"]))
    server.files[f"/{files[0].path}"] = old_news()
    refused(server, tmp_path, files, "old news task .*LaMP_2/new")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (outputs_of("LaMP_3", "dev", COUNT - 1), "belong to different samples: 1 questions"),
        (outputs_of("LaMP_3", "train", COUNT), "belong to different samples: 40 questions"),
        (outputs_of("LaMP_2", "dev", COUNT), "says task 'LaMP_2'"),
        (outputs_of("LaMP_3", "dev", COUNT).replace(b'"4"', b'"9"'), "no label of LaMP_3"),
        (outputs_of("LaMP_3", "dev", COUNT)[:-40], "cut off"),
    ],
)
def test_outputs_that_do_not_answer_the_questions_are_refused(
    server: Server, tmp_path: Path, content: bytes, match: str
) -> None:
    serve(server, DEV_3)
    get(server, tmp_path, DEV_3[:1])
    server.files[f"/{DEV_3[1].path}"] = content
    # A fresh start has to read the questions again to know their ids.
    refused(server, tmp_path, DEV_3, match)


def test_numbers_that_nobody_confirmed_are_told_and_taken(server: Server, tmp_path: Path) -> None:
    files = tuple(replace(file, records=COUNT + 2, confirmed=False) for file in DEV_3)
    serve(server, files)
    _, heard = get(server, tmp_path, files)
    assert sum("LaMP documents 42" in sentence for sentence in heard.said) == 2


def test_other_numbers_are_taken_on_request(server: Server, tmp_path: Path) -> None:
    files = tuple(replace(file, records=9000) for file in DEV_3)
    serve(server, files)
    refused(server, tmp_path, files, "fewer than the 1,800,000 that its records need")
    assert get(server, tmp_path, files, accept=True)[0] == 2


def test_a_page_in_place_of_one_file_leaves_the_finished_ones(
    server: Server, tmp_path: Path
) -> None:
    serve(server, DEV_3)
    server.will(f"/{DEV_3[1].path}", page, status(404))
    for match in ("a web page instead", "HTTP 404"):
        with pytest.raises(UserError, match=match):
            get(server, tmp_path, DEV_3)
        assert stored(tmp_path) == [DEV_3[0].path, LOCK]
    assert get(server, tmp_path, DEV_3)[0] == 1


def test_a_resumed_file_has_the_hash_of_the_whole_one(server: Server, tmp_path: Path) -> None:
    serve(server, DEV_3)
    get(server, tmp_path / "whole", DEV_3)
    server.will(f"/{DEV_3[0].path}", cut_at(900), cut_at(2000), cut_at(700))
    with pytest.raises(UserError, match="bytes are kept"):
        get(server, tmp_path / "cut", DEV_3)
    get(server, tmp_path / "cut", DEV_3)
    assert (tmp_path / "cut" / LOCK).read_text() == (tmp_path / "whole" / LOCK).read_text()


def test_downloads_of_two_tasks_share_one_lock(server: Server, tmp_path: Path) -> None:
    other = small(official_files(["LaMP_7"], "user", ["dev"]))
    serve(server, (*DEV_3, *other))
    get(server, tmp_path, DEV_3)
    get(server, tmp_path, other)
    assert len(json.loads((tmp_path / LOCK).read_text())["files"]) == 4


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"format": 9, "files": {}}', '{"format": 1, "files": {"a": {"bytes": 1}}}'],
)
def test_a_damaged_lock_is_named(server: Server, tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK).write_text(text)
    refused(server, tmp_path, DEV_3, f"{LOCK} is no list .*delete it")


@pytest.mark.parametrize(
    "url",
    ["", "ciir.cs.umass.edu", "ftp://a/b", "file:///etc", "http://", "http://a b/", "http://a:99999"],
)  # fmt: skip
def test_a_base_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="--base-url takes an http or https address"):
        check_base_url(url)


def test_a_base_url_with_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserError, match="no user name or password") as caught:
        check_base_url("https://me:secret@mirror.org/LaMP")
    assert "secret" not in str(caught.value)


def test_nothing_that_a_run_imports_can_download() -> None:
    """The demo touches no network: only the data command reaches these modules."""
    closure = SourceTree().closure(["chameleon_lib.sections.data", "chameleon_lib.lamp"])
    assert "chameleon_lib.lamp.data" in closure
    assert [name for name in closure if name.startswith("chameleon_lib.lamp.download")] == []


@needs_shared_data
def test_the_real_tweets_pass_the_checks_of_a_download(server: Server, tmp_path: Path) -> None:
    files = official_files(["LaMP_7"], "user", ["dev"])
    for file in files:
        source = SHARED_DATA / "lamp" / "LaMP_7" / Path(file.path).name
        server.files[f"/{file.path}"] = source.read_bytes()
    server.will(f"/{files[0].path}", cut_at(1_500_000))
    fetched, _ = get(server, tmp_path, files)
    questions, outputs = find_split(tmp_path, "LaMP_7", "dev")
    assert fetched == 2 and len(load_users(questions, outputs, "LaMP_7")) == 1500
