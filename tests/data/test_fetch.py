"""Official files from a server that may misbehave, into a folder that loads as it is."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_lib.cli import main
from chameleon_lib.data.fetch import (
    LOCK,
    Manners,
    OfficialFile,
    check_base_url,
    download,
    official_files,
)
from chameleon_lib.data.lamp import find_split
from chameleon_lib.data.users import load_users
from chameleon_lib.errors import UserError
from chameleon_lib.kit.sources import SourceTree
from tests.data.helpers import SHARED_DATA, needs_shared_data, raw_sample
from tests.data.server import (
    Act,
    Handler,
    Server,
    all_of_it,
    cut_at,
    outputs_of,
    page,
    questions_of,
    running,
    stalled,
    status,
)

QUICK = Manners(timeout=0.5, attempts=3, pause=0.01)
COUNT = 40


def small(files: tuple[OfficialFile, ...]) -> tuple[OfficialFile, ...]:
    """The same files with few records."""
    return tuple(replace(file, records=COUNT, confirmed=True) for file in files)


def serve(server: Server, files: tuple[OfficialFile, ...]) -> None:
    for file in files:
        make = questions_of if file.kind == "questions" else outputs_of
        server.files[f"/{file.path}"] = make(file.task, file.part, COUNT)


def get(
    server: Server, folder: Path, files: tuple[OfficialFile, ...] = (), accept: bool = False
) -> int:
    manners = replace(QUICK, accept_changed=accept)
    return download(folder, files or DEV_3, base_url=server.url + "/", manners=manners)


def stored(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def refused(
    server: Server, folder: Path, match: str, files: tuple[OfficialFile, ...] = ()
) -> None:
    """One sentence, and nothing half-written."""
    before = stored(folder)
    with pytest.raises(UserError, match=match) as caught:
        get(server, folder, files)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence and ".partial" not in sentence
    assert stored(folder) == before


DEV_3 = small(official_files(["LaMP-3"], "user", ["dev"]))
PATH = f"/{DEV_3[0].path}"
GOOD = questions_of("LaMP_3", "dev", COUNT)
CUT = len(GOOD) // 2
REST = f"bytes={CUT}-"


# --- what there is ---------------------------------------------------------------------------


def test_the_table_knows_the_documented_numbers() -> None:
    known = {file.path: file for file in official_files()}
    assert known["LaMP_3/dev/dev_questions.json"].bytes == 401_034_862
    assert known["LaMP_2/new/dev/dev_questions.json"].records == 692
    assert [known[f"LaMP_7/{p}/{p}_questions.json"].records for p in ("train", "dev", "test")] == [
        10_437, 1_500, 1_496,
    ]  # fmt: skip
    assert not known["LaMP_2/new/train/train_questions.json"].confirmed
    assert len(known) == 15 and not [p for p in known if "test_outputs" in p]
    assert all("/new/" in path for path in known if path.startswith("LaMP_2/"))
    assert [file.path for file in official_files(["LaMP_5"], "time", ["dev"])] == [
        f"time/LaMP_5/dev/dev_{kind}.json" for kind in ("questions", "outputs")
    ]


# --- one file over HTTP ----------------------------------------------------------------------


def fetched(server: Server, folder: Path, *acts: Act) -> list[str]:
    """Fetch the questions from a server that answers by these acts first; what was asked for."""
    server.files[PATH] = GOOD
    server.will(PATH, *acts)
    assert get(server, folder, DEV_3[:1]) == 1
    assert (folder / DEV_3[0].path).read_bytes() == server.files[PATH]
    assert stored(folder) == sorted([LOCK, DEV_3[0].path])
    return server.ranges(PATH)


def test_a_cut_connection_goes_on_at_the_next_byte(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetched(server, tmp_path, cut_at(CUT)) == ["", REST]
    assert server.seen[1][1]["If-Range"] == '"v1"'
    assert f"ended after {CUT:,} of" in capsys.readouterr().err


def test_what_has_arrived_is_kept_and_the_next_start_goes_on(
    server: Server, tmp_path: Path
) -> None:
    server.files[PATH] = GOOD
    server.will(PATH, cut_at(CUT), status(503), status(503))
    with pytest.raises(UserError, match=f"in 3 attempts .*{CUT:,} bytes are kept, start the same"):
        get(server, tmp_path)
    assert len(stored(tmp_path)) == 1 and stored(tmp_path)[0].endswith(".partial")
    assert fetched(server, tmp_path) == ["", REST, REST, REST]


def test_a_file_that_changes_between_two_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    new = GOOD.replace(b"query dev 3", b"query dev X")

    def changed(h: Handler, _: bytes) -> None:
        server.files[PATH] = new
        h.whole_or_rest(new, '"v2"')

    assert fetched(server, tmp_path, cut_at(CUT), changed) == ["", REST]


@pytest.mark.parametrize(
    ("etag", "start"), [('"v2"', CUT), ('"v1"', 0), ('"v1"', CUT + 1)]
)
def test_a_part_of_something_else_is_never_appended(
    server: Server, tmp_path: Path, etag: str, start: int
) -> None:
    """A server that ignores If-Range, or answers another range."""

    def wrong(h: Handler, content: bytes) -> None:
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        h.answer(206, content[start:], ETag=etag, **{"Content-Range": span})

    assert fetched(server, tmp_path, cut_at(CUT), wrong) == ["", REST, ""]


def test_bytes_of_no_version_are_not_continued(server: Server, tmp_path: Path) -> None:
    """A weak ETag promises nothing about bytes."""
    assert fetched(server, tmp_path, cut_at(CUT, etag='W/"v1"'), all_of_it) == ["", ""]
    assert fetched(server, tmp_path / "other", cut_at(CUT), all_of_it)[2:] == ["", REST]


def test_a_server_that_always_cuts_or_lasts_in_error_is_given_up(
    server: Server, tmp_path: Path
) -> None:
    server.files[PATH] = GOOD
    no_version = status(200, GOOD[:CUT], **{"Content-Length": str(len(GOOD))})
    for acts, match in (((no_version,), f"ended after {CUT:,}"), ((status(500),), "HTTP 500")):
        server.will(PATH, *acts * 3)
        with pytest.raises(UserError, match=f"in 3 attempts .*{match}.*--base-url"):
            get(server, tmp_path)
    assert len(server.seen) == 6 and fetched(server, tmp_path)


def test_a_passing_error_a_stall_and_a_missing_length_are_lived_with(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetched(server, tmp_path, stalled(CUT, 1.0)) == ["", REST]
    assert "nothing came for 0.5 seconds" in capsys.readouterr().err
    fetched(server, tmp_path / "503", status(503))
    fetched(server, tmp_path / "length", status(200, GOOD, **{"Content-Length": ""}))


@pytest.mark.parametrize(
    ("act", "match"),
    [
        *[
            (status(code), f"HTTP {code} .*{advice}")
            for code, advice in [(404, "no such file"), (410, "removed"), (403, "forbids"),
                                 (401, "login"), (407, "user and password"), (418, "browser")]
        ],
        (page, "a web page instead of the file .HTTP 200"),
        (status(200, b"\xef\xbb\xbf \n  <html>" + b" " * 9000), "a web page"),
        (status(200, b" \n plain text" * 900), "no JSON .no type given"),
        (status(302, b"", Location="/login"), "a web page"),
        (status(200, b"\x1f\x8b gzip" * 900, **{"Content-Encoding": "gzip"}), "no JSON"),
    ],
)  # fmt: skip
def test_a_refusal_ends_at_once_and_leaves_nothing(
    server: Server, tmp_path: Path, act: Act, match: str
) -> None:
    server.files["/login"] = b"<html>please log in</html>" * 400
    server.will(PATH, act)
    refused(server, tmp_path, f"{PATH}.*{match}", DEV_3[:1])
    assert len(server.ranges(PATH)) == 1
    assert server.seen[0][1]["Accept-Encoding"] == "identity"


def test_a_host_that_refuses_or_does_not_exist_ends_at_once(tmp_path: Path) -> None:
    with running() as closed:
        gone = closed.url
    for url, match in ((gone, "refuses the connection"), ("http://no.such.invalid", "found")):
        with pytest.raises(UserError, match=match):
            download(tmp_path, DEV_3, base_url=url, manners=QUICK)
    assert stored(tmp_path) == []


def test_two_downloads_of_one_file_do_not_mix(server: Server, tmp_path: Path) -> None:
    server.files[PATH] = GOOD

    def second(h: Handler, content: bytes) -> None:
        with pytest.raises(UserError, match="Another download is writing"):
            get(server, tmp_path)
        h.whole_or_rest(content)

    fetched(server, tmp_path, second)


@pytest.mark.parametrize("name", ["http_proxy", "all_proxy", "ALL_PROXY"])
def test_the_proxy_of_the_environment_is_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, server.url)
    server.files[f"http://lamp.invalid{PATH}"] = GOOD  # a proxy is asked for the whole address
    assert download(tmp_path, DEV_3[:1], base_url="http://lamp.invalid", manners=QUICK) == 1
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    fetched(server, tmp_path / "direct")
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    refused(server, tmp_path / "socks", "socks5 proxy")


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


# --- a folder ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "split"), [("LaMP_2", "user"), ("LaMP_2", "time"), ("LaMP_3", "time")]
)
def test_a_downloaded_folder_loads_as_it_is(
    server: Server, tmp_path: Path, task: str, split: str
) -> None:
    files = small(official_files([task], split))
    serve(server, files)
    assert get(server, tmp_path, files) == 5
    root = tmp_path / "time" if split == "time" else tmp_path
    for part in ("train", "dev", "test"):
        questions, outputs = find_split(root, task, part)
        users = load_users(questions, outputs, task)
        golds = [query.gold for user in users for query in user.queries]
        assert len(golds) == COUNT
        assert (outputs is None) == (part == "test") == (set(golds) == {None})


def test_other_numbers_of_records_are_refused_told_or_taken_on_request(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(server, DEV_3)
    files = tuple(replace(file, records=COUNT + 2) for file in DEV_3)
    refused(server, tmp_path, "holds 40 questions, and LaMP documents 42", files)
    get(server, tmp_path, tuple(replace(file, confirmed=False) for file in files))
    assert capsys.readouterr().err.count("LaMP documents 42") == 2
    assert get(server, tmp_path / "other", files, accept=True) == 2


def test_the_lock_names_address_size_hash_and_records_and_no_date(
    server: Server, tmp_path: Path
) -> None:
    serve(server, DEV_3)
    get(server, tmp_path)
    text = (tmp_path / LOCK).read_text()
    entries = json.loads(text)["files"]
    assert list(entries) == [file.path for file in sorted(DEV_3, key=lambda f: f.path)]
    for path, entry in entries.items():
        assert entry["url"] == f"{server.url}/{path}" and entry["records"] == COUNT
        assert entry["bytes"] == (tmp_path / path).stat().st_size and len(entry["sha256"]) == 64
    assert not re.search(r"\d{4}-\d\d-\d\d|\d\d:\d\d", text.replace(server.url, ""))
    asked = len(server.seen)
    assert get(server, tmp_path) == 0 and len(server.seen) == asked, "the second start only checks"
    assert (tmp_path / LOCK).read_text() == text
    server.will(PATH, cut_at(CUT))
    get(server, tmp_path / "resumed")
    assert (tmp_path / "resumed" / LOCK).read_text() == text


def test_a_file_that_changed_on_disk_is_said_and_kept_on_request(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(server, DEV_3)
    get(server, tmp_path)
    changed = tmp_path / DEV_3[0].path
    changed.write_bytes(changed.read_bytes().replace(b"query dev 3", b"query dev X"))
    refused(server, tmp_path, "not the file that was recorded .*delete it")
    assert get(server, tmp_path, accept=True) == 0
    assert "found in place" in capsys.readouterr().err
    assert get(server, tmp_path) == 0


def test_a_file_that_changed_on_the_server_is_said_and_taken_on_request(
    server: Server, tmp_path: Path
) -> None:
    serve(server, DEV_3)
    get(server, tmp_path)
    old = (tmp_path / LOCK).read_text()
    (tmp_path / DEV_3[0].path).unlink()
    server.files[PATH] = server.files[PATH].replace(b"query dev 3", b"query dev X")
    with pytest.raises(UserError, match="changed on the server; take the new one"):
        get(server, tmp_path)
    assert (tmp_path / LOCK).read_text() == old and not (tmp_path / DEV_3[0].path).exists()
    assert get(server, tmp_path, accept=True) == 1
    assert server.ranges(PATH)[-1] == f"bytes={len(server.files[PATH])}-", "nothing is sent again"
    assert (tmp_path / LOCK).read_text() != old


def test_files_already_in_place_are_checked_and_recorded(server: Server, tmp_path: Path) -> None:
    serve(server, DEV_3)
    for file in DEV_3:
        target = tmp_path / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(server.files[f"/{file.path}"])
    assert get(server, tmp_path) == 0 and server.seen == []
    entries = json.loads((tmp_path / LOCK).read_text())["files"]
    assert [entry["url"] for entry in entries.values()] == [None, None]
    (tmp_path / LOCK).unlink()
    (tmp_path / DEV_3[1].path).write_text("{}")
    with pytest.raises(UserError, match="dev_outputs.json has no list of golds"):
        get(server, tmp_path)


def questions_with(change: dict[str, object]) -> bytes:
    records = [raw_sample("LaMP_3", f"1{i}") for i in range(COUNT)]
    records[7] |= change
    return json.dumps(records).encode()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (GOOD[:-900], "is cut off"),
        (b"[" + b"no json " * 2000 + b"]", "record number 0 is not valid JSON"),
        (outputs_of("LaMP_3", "dev", 1000), "is not a JSON list"),
        (b"[" + b" " * 9000 + b"]", "empty list"),
        (questions_of("LaMP_7", "dev", COUNT), "has no 'score'"),
        (questions_with({"id": "13"}), "holds record '13' twice"),
    ],
)
def test_a_whole_file_that_is_no_lamp_file_is_refused_and_removed(
    server: Server, tmp_path: Path, content: bytes, match: str
) -> None:
    server.files[PATH] = content
    refused(server, tmp_path, f"http://127.0.0.1:.*dev_questions.json.*{match}")


@pytest.mark.parametrize(
    ("content", "match"),
    [
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
    refused(server, tmp_path, match)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"format": 9, "files": {}}', '{"format": 1, "files": {"a": {"bytes": 1}}}'],
)
def test_a_damaged_lock_is_named(server: Server, tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK).write_text(text)
    refused(server, tmp_path, f"{LOCK} is no list .*delete it")


def test_nothing_that_a_run_imports_can_download() -> None:
    """The demo touches no network: only the data command reaches the downloader."""
    closure = SourceTree().closure(["chameleon_lib.studies.data", "chameleon_lib.data"])
    assert "chameleon_lib.data.lamp" in closure and "chameleon_lib.data.fetch" not in closure


@needs_shared_data
def test_the_real_tweets_pass_the_checks_of_a_download(server: Server, tmp_path: Path) -> None:
    files = official_files(["LaMP_7"], "user", ["dev"])
    for file in files:
        source = SHARED_DATA / "lamp" / "LaMP_7" / Path(file.path).name
        server.files[f"/{file.path}"] = source.read_bytes()
    server.will(f"/{files[0].path}", cut_at(1_500_000))
    assert get(server, tmp_path, files) == 2
    questions, outputs = find_split(tmp_path, "LaMP_7", "dev")
    assert len(load_users(questions, outputs, "LaMP_7")) == 1500


# --- the command -------------------------------------------------------------------------------

QUESTIONS, OUTPUTS = (file.path for file in official_files(["LaMP_7"], "user", ["dev"]))


def command(server: Server, folder: Path) -> list[str]:
    return [
        "data", "lamp", "--task", "LaMP_7", "--parts", "dev", "--to", str(folder),
        "--base-url", server.url, "--timeout", "2", "--attempts", "2",
    ]  # fmt: skip


@pytest.fixture
def served(server: Server) -> Server:
    server.files[f"/{QUESTIONS}"] = questions_of("LaMP_7", "dev", 1500)
    server.files[f"/{OUTPUTS}"] = outputs_of("LaMP_7", "dev", 1500)
    return server


def test_one_command_downloads_says_what_it_did_and_how_to_use_it(
    served: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(served, tmp_path)) == 0
    out = capsys.readouterr().out
    assert "2 of 2 files downloaded" in out and f"--data {tmp_path}" in out
    assert "test_outputs" not in out
    assert main(command(served, tmp_path)) == 0
    again = capsys.readouterr()
    assert "0 of 2 files downloaded" in again.out and "verifying" in again.err
    path = official_files(["LaMP_7"], "user", ["test"])[0].path
    served.files[f"/{path}"] = questions_of("LaMP_7", "test", 1496)
    assert main(["test" if word == "dev" else word for word in command(served, tmp_path)]) == 0
    assert "withholds the labels of its test part" in capsys.readouterr().out


def test_a_kill_in_the_middle_is_resumed_from_the_bytes_that_arrived(
    served: Server, tmp_path: Path
) -> None:
    content = served.files[f"/{QUESTIONS}"]

    def slowly(h: Handler, _: bytes) -> None:
        h.answer(200, content[:100_000], ETag='"v1"', **{"Content-Length": str(len(content))})
        h.wfile.flush()
        time.sleep(20)

    served.will(f"/{QUESTIONS}", slowly)
    words = [sys.executable, "-m", "chameleon_lib", *command(served, tmp_path), "--timeout", "30"]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while [p.stat().st_size for p in tmp_path.rglob("*.partial")] != [100_000]:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / QUESTIONS).exists()
    assert main(command(served, tmp_path)) == 0
    assert served.ranges(f"/{QUESTIONS}") == ["", "bytes=100000-"]
    assert (tmp_path / QUESTIONS).read_bytes() == content
    assert stored(tmp_path) == sorted([LOCK, OUTPUTS, QUESTIONS])


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["lamp"], "Missing option '--to'"),
        (["lamp", "--to", "x", "--task", "LaMP_9"], "Unknown task 'LaMP_9'"),
        (["lamp", "--to", "x", "--split", "item"], "Invalid value for '--split': 'item'"),
        (["lamp", "--to", "x", "--parts", "dev,eval"], "Unknown part 'eval'"),
        (["lamp", "--to", "x", "--parts", ","], "--parts takes some of train, dev, test"),
        (["lamp", "--to", "x", "--timeout", "nan"], "--timeout takes a number of seconds"),
        (["lamp", "--to", "x", "--attempts", "0"], "Invalid value for '--attempts'"),
        (["lamp", "--to", "x", "--base-url", "x.org"], "--base-url takes an http or https"),
        (["lampe"], "No such command 'lampe'"),
    ],
)
def test_misuse_is_answered_with_one_sentence_and_exit_code_2(
    words: list[str], start: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [str(tmp_path / "x") if word == "x" else word for word in words]
    assert main(["data", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert captured.err.startswith(start) and list(tmp_path.iterdir()) == []
