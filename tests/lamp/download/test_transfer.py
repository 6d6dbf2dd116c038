"""One file over HTTP from a server that misbehaves."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.lamp.download import transfer
from chameleon_lib.lamp.download.partial import Partial
from chameleon_lib.lamp.download.transfer import Manners, fetch
from tests.lamp.download.server import (
    Handler,
    Server,
    all_of_it,
    cut_at,
    page,
    running,
    stalled,
    status,
    trickle,
)

PATH = "/LaMP_3/dev/dev_questions.json"
OLD = b"[" + b'"old", ' * 3000 + b"0]"
NEW = b"[" + b'"new", ' * 3000 + b"0]"
QUICK = Manners(timeout=0.5, attempts=3, pause=0.01)


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.moves: list[tuple[int, int | None]] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def progress(self, what: str, unit: str, done: int, total: int | None) -> None:
        assert what.endswith(PATH) and unit == "bytes"
        self.moves.append((done, total))


def get(
    server: Server, folder: Path, manners: Manners = QUICK, smallest: int = 0
) -> tuple[bytes, Heard]:
    heard, target = Heard(), folder / "dev_questions.json"
    url = server.url + PATH
    with Partial(target, url).opened() as partial:
        fetch(url, partial, manners=manners, listener=heard, smallest=smallest)
        content = partial.path.read_bytes()
        partial.keep(target)
    assert content == target.read_bytes() and names(folder) == ["dev_questions.json"]
    return content, heard


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(server: Server, folder: Path, match: str, manners: Manners = QUICK) -> str:
    with pytest.raises(UserError, match=match) as caught:
        get(server, folder, manners)
    sentence = str(caught.value)
    assert PATH in sentence and sentence.endswith(".") and "\n" not in sentence
    return sentence


@pytest.fixture(autouse=True)
def content(server: Server) -> bytes:
    server.files[PATH] = OLD
    return OLD


def test_a_good_server_is_asked_once(server: Server, tmp_path: Path) -> None:
    found, heard = get(server, tmp_path)
    assert found == OLD and heard.said == [] and heard.moves[-1] == (len(OLD), len(OLD))
    assert server.ranges(PATH) == [""]


def test_a_cut_connection_goes_on_at_the_next_byte(server: Server, tmp_path: Path) -> None:
    server.will(PATH, cut_at(5000))
    found, heard = get(server, tmp_path)
    assert found == OLD and server.ranges(PATH) == ["", "bytes=5000-"]
    assert server.seen[1][1]["If-Range"] == '"v1"'
    assert "ended after 5,000 of" in heard.said[0]


def test_what_has_arrived_is_kept_and_the_next_start_goes_on(
    server: Server, tmp_path: Path
) -> None:
    once = Manners(timeout=0.5, attempts=1, pause=0.01)
    server.will(PATH, cut_at(5000))
    sentence = refused(server, tmp_path, "in 1 attempts .*5,000 bytes are kept", once)
    assert "start the same command again" in sentence
    assert names(tmp_path) == ["dev_questions.json.partial", "dev_questions.json.partial.json"]
    found, _ = get(server, tmp_path)
    assert found == OLD and server.ranges(PATH) == ["", "bytes=5000-"]


def test_a_file_that_changes_between_two_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.will(PATH, cut_at(5000), lambda h, _: h.whole_or_rest(NEW, '"v2"'))
    found, heard = get(server, tmp_path)
    assert found == NEW and server.ranges(PATH) == ["", "bytes=5000-"]
    assert heard.said[-1].endswith("starts over: it changed on the server.")


@pytest.mark.parametrize(
    ("etag", "start", "total"),
    [('"v2"', 5000, None), ('"v1"', 0, None), ('"v1"', 5000, 99), ('"v1"', 5001, None)],
)
def test_a_part_of_something_else_is_never_appended(
    server: Server, tmp_path: Path, etag: str, start: int, total: int | None
) -> None:
    """A server that ignores If-Range, answers another range, or speaks of another size."""

    def wrong(h: Handler, _: bytes) -> None:
        span = f"bytes {start}-{len(NEW) - 1}/{total or len(NEW)}"
        h.answer(206, NEW[start:], ETag=etag, **{"Content-Range": span})

    server.will(PATH, cut_at(5000), wrong)
    found, heard = get(server, tmp_path)
    assert found == OLD and server.ranges(PATH) == ["", "bytes=5000-", ""]
    assert "another version" in heard.said[-1]


def test_a_server_without_ranges_sends_everything_again(server: Server, tmp_path: Path) -> None:
    server.will(PATH, cut_at(5000), all_of_it)
    assert get(server, tmp_path)[0] == OLD


def test_bytes_without_a_version_are_not_continued(server: Server, tmp_path: Path) -> None:
    """A weak ETag promises nothing about bytes."""
    server.will(PATH, cut_at(5000, etag='W/"v1"'), all_of_it)
    assert get(server, tmp_path)[0] == OLD and server.ranges(PATH) == ["", ""]


def test_a_date_names_a_version_as_well(server: Server, tmp_path: Path) -> None:
    date = "Wed, 21 Feb 2024 07:28:00 GMT"

    def rest(h: Handler, content: bytes) -> None:
        span = f"bytes 5000-{len(content) - 1}/{len(content)}"
        h.answer(206, content[5000:], **{"Content-Range": span, "Last-Modified": date})

    head = status(200, OLD[:5000], **{"Content-Length": str(len(OLD)), "Last-Modified": date})
    server.will(PATH, head, rest)
    assert get(server, tmp_path)[0] == OLD and server.seen[1][1]["If-Range"] == date


def test_a_server_that_always_cuts_and_never_resumes_is_given_up(
    server: Server, tmp_path: Path
) -> None:
    def ignore(h: Handler, content: bytes) -> None:
        h.answer(200, content[:5000], **{"Content-Length": str(len(content))})

    server.will(PATH, *[ignore] * 3)
    refused(server, tmp_path, "in 3 attempts .*ended after 5,000")
    assert len(server.seen) == 3


def test_a_length_beyond_the_file_is_given_up_in_one_sentence(
    server: Server, tmp_path: Path
) -> None:
    def boast(h: Handler, content: bytes) -> None:
        h.answer(200, content, ETag='"v1"', **{"Content-Length": str(len(content) + 70)})

    server.will(PATH, boast, lambda h, c: h.whole_or_rest(c), boast, boast)
    refused(server, tmp_path, "in 3 attempts")
    # The second request asked for the 70 bytes that do not exist.
    assert server.ranges(PATH)[:2] == ["", f"bytes={len(OLD)}-"]


def test_an_answer_without_a_length_ends_where_the_connection_ends(
    server: Server, tmp_path: Path
) -> None:
    server.will(PATH, status(200, OLD, **{"Content-Length": ""}))
    found, heard = get(server, tmp_path)
    assert found == OLD and heard.moves[-1] == (len(OLD), None)


def test_a_passing_server_error_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.will(PATH, status(500), status(503, **{"Retry-After": "0"}))
    found, heard = get(server, tmp_path)
    assert found == OLD and ["HTTP 500" in s or "HTTP 503" in s for s in heard.said] == [True] * 2


def test_a_lasting_server_error_is_given_up(server: Server, tmp_path: Path) -> None:
    server.will(PATH, *[status(500)] * 3)
    refused(server, tmp_path, "in 3 attempts .HTTP 500 .*--base-url")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "advice"),
    [(404, "no such file"), (410, "removed"), (403, "forbids"), (401, "login"), (418, "browser")],
)
def test_a_refusal_ends_at_once_and_leaves_nothing(
    server: Server, tmp_path: Path, code: int, advice: str
) -> None:
    server.will(PATH, status(code))
    refused(server, tmp_path, f"HTTP {code} .*{advice}")
    assert len(server.seen) == 1 and names(tmp_path) == []


def test_html_with_status_200_is_refused_and_not_stored(server: Server, tmp_path: Path) -> None:
    server.will(PATH, page)
    refused(server, tmp_path, "a web page instead of the file .HTTP 200")
    assert len(server.seen) == 1 and names(tmp_path) == []


def test_blanks_before_a_page_or_a_list_do_not_hide_what_it_is(
    server: Server, tmp_path: Path
) -> None:
    server.will(PATH, status(200, b"\xef\xbb\xbf \n  <html>"), status(200, b" \n plain text"))
    refused(server, tmp_path, "a web page")
    refused(server, tmp_path, "no JSON .no type given")
    server.will(PATH, status(200, b"\xef\xbb\xbf \n" + OLD))
    assert get(server, tmp_path)[0].endswith(OLD)


def test_a_redirect_to_a_login_page_is_a_web_page(server: Server, tmp_path: Path) -> None:
    server.files["/login"] = b"<html>please log in</html>"
    server.will(PATH, status(302, b"", Location="/login"))
    refused(server, tmp_path, "a web page")


def test_a_redirect_keeps_the_range(server: Server, tmp_path: Path) -> None:
    server.files["/new/place"] = OLD
    server.will(PATH, cut_at(5000), status(302, b"", Location="/new/place"))
    assert get(server, tmp_path)[0] == OLD and server.ranges("/new/place") == ["bytes=5000-"]


def test_a_stalled_connection_is_left_and_resumed(server: Server, tmp_path: Path) -> None:
    server.will(PATH, stalled(5000, 1.0))
    found, heard = get(server, tmp_path, Manners(timeout=0.2, attempts=3, pause=0.01))
    assert found == OLD and server.ranges(PATH) == ["", "bytes=5000-"]
    assert "nothing came for 0.2 seconds" in heard.said[0]


def test_a_trickle_counts_as_a_stall(server: Server, tmp_path: Path) -> None:
    server.will(PATH, trickle(0.05))
    found, heard = get(server, tmp_path, Manners(timeout=0.2, attempts=3, pause=0.01))
    assert found == OLD and "hardly moves" in heard.said[0]


def test_a_host_that_refuses_or_does_not_exist_ends_at_once(server: Server, tmp_path: Path) -> None:
    with running() as closed:
        gone = closed.url
    for url, match in ((gone, "refuses the connection"), ("http://no.such.invalid", "found")):
        with pytest.raises(UserError, match=match):
            with Partial(tmp_path / "x.json", url).opened() as partial:
                fetch(url + PATH, partial, manners=QUICK, listener=Heard())
    assert names(tmp_path) == [] and server.seen == []


def test_a_size_that_cannot_be_whole_is_refused_before_it_is_fetched(
    server: Server, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="fewer than the 500,000 .*--accept-changed"):
        get(server, tmp_path, smallest=500_000)
    assert names(tmp_path) == []


def test_a_full_disk_is_said_before_and_during_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(transfer.shutil, "disk_usage", lambda _: usage._replace(free=10))
        refused(server, tmp_path, "more bytes, and the disk of .* has 10 left")

    class Full:
        def write(self, _: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    partial = Partial(tmp_path / "x.json", "u")
    partial._file = Full()  # type: ignore[assignment]
    with pytest.raises(UserError, match="No space left on device.*free some space"):
        partial.write(b"[")


def test_a_compressed_answer_nobody_asked_for_is_refused(server: Server, tmp_path: Path) -> None:
    server.will(PATH, status(200, OLD, **{"Content-Encoding": "gzip"}))
    refused(server, tmp_path, "comes compressed .gzip")
    assert server.seen[0][1]["Accept-Encoding"] == "identity"


def test_a_note_that_is_damaged_or_of_another_address_starts_over(
    server: Server, tmp_path: Path
) -> None:
    target = tmp_path / "dev_questions.json"
    whole = {"url": server.url + PATH, "version": '"v1"', "total": len(OLD)}
    notes = ["{", "[]", json.dumps(whole | {"url": "http://elsewhere"}),
             json.dumps(whole | {"version": None}), json.dumps(whole | {"total": 3})]  # fmt: skip
    for note in notes:
        target.with_name(f"{target.name}.partial").write_bytes(NEW[:5000])
        target.with_name(f"{target.name}.partial.json").write_text(note)
        assert get(server, tmp_path)[0] == OLD
    assert server.ranges(PATH) == [""] * len(notes)


def test_two_downloads_of_one_file_do_not_mix(server: Server, tmp_path: Path) -> None:
    with Partial(tmp_path / "dev_questions.json", server.url + PATH).opened():
        with pytest.raises(UserError, match="Another download is writing"):
            get(server, tmp_path)
    assert get(server, tmp_path)[0] == OLD


def test_a_folder_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file.* cannot be written"):
        get(server, tmp_path / "file")


@pytest.mark.parametrize("name", ["http_proxy", "all_proxy", "ALL_PROXY"])
def test_the_proxy_of_the_environment_is_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, server.url)
    url = "http://lamp.invalid" + PATH
    server.files[url] = OLD  # a proxy is asked for the whole address
    with Partial(tmp_path / "x.json", url).opened() as partial:
        fetch(url, partial, manners=QUICK, listener=Heard())
        assert partial.path.read_bytes() == OLD
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert get(server, tmp_path / "direct")[0] == OLD


def test_a_proxy_that_cannot_be_used_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(UserError, match="socks5 proxy"):
        get(server, tmp_path)
    monkeypatch.setenv("all_proxy", "")
    server.will(PATH, status(407))
    refused(server, tmp_path, "HTTP 407 .*user and password into https_proxy")
