"""Load on the example server: many users in flight, bad requests, and kill -9.

    python -m workshop.load                 all of it on decoder-0 (about five minutes)
    python -m workshop.load --users 8 --rounds 3 --malformed 300    a short one
    python -m workshop.load --malformed 0 --rounds 0                equality alone

A store of as many users is made, each with random directions at every layer, at a strength that
changes answers; every answer of its server is compared with the same prompt run alone in this
process. What edits cost does not depend on what they change, but it does on the length of answers:
so throughput is measured with the same directions at a strength that changes none, beside a server
of the same store without edits. One of the two is asked at a time, in alternating order. Bad
requests go between good ones; what the server's Python opens meanwhile is noted by an audit hook.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from chameleon_lib.backbones import HFBackbone, load_backbone
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.demo import checkpoint
from chameleon_lib.kit.hashing import tree_digests
from chameleon_lib.kit.paths import root
from chameleon_lib.kit.stats import bootstrap_mean
from chameleon_lib.serving.server import EDIT_HEADER
from chameleon_lib.serving.sharded import ShardedStore
from chameleon_lib.serving.shards import FITTED, Manifest, Row, rows_table, shard_path, write_table
from chameleon_lib.serving.tokens import Tokens
from workshop.bench.models import paired_prompts

NEW_TOKENS = 16
STRONG, WEAK = 40.0, 1e-3


def stand_in_store(
    folder: Path, backbone: HFBackbone, users: int, strength: float
) -> ShardedStore:
    """A store of users with an edit of random directions each."""
    settings = EditSettings(
        edit_positions="all", edit_alpha_p=strength, edit_alpha_n=min(1.0, strength)
    )
    about = Manifest(
        task="LaMP_2", edits="own", backbone=backbone.name, fingerprint=backbone.fingerprint,
        revision=backbone.revision, d=backbone.d, slots=backbone.n_layers, dtype="float32",
        settings=settings.canonical(), prompts="", shards=2,
    )  # fmt: skip
    folder.mkdir(parents=True)
    about.write(folder)
    store = ShardedStore(folder)
    layers, rows = tuple(range(backbone.n_layers)), []
    for at in range(users):
        generator = torch.Generator().manual_seed(at)
        theta = torch.randn(2, len(layers), backbone.d, generator=generator)
        theta = torch.nn.functional.normalize(theta, dim=-1)
        edit = Edit.of(settings, layers, theta[0], theta[1])
        rows.append(Row(store.key_of(f"user{at}"), bytes(8), FITTED, edit=edit, n_pairs=9))
    rows.sort(key=lambda row: row.user)
    for shard in range(about.shards):
        own = [row for row in rows if about.shard_of(row.user) == shard]
        write_table(shard_path(folder, shard), [rows_table(own, about)], about)
    return store


# --- a server of its own --------------------------------------------------------------------------

# What Python opens is written to a file descriptor that was opened before.
_AUDITED = """
import os, sys
log = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def note(event, args):
    if event in ("open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir",
                 "os.rmdir", "os.link", "os.symlink", "shutil.rmtree", "subprocess.Popen",
                 "os.system", "os.exec", "socket.connect"):
        path = args[0] if args else ""
        path = os.fsdecode(path) if isinstance(path, (str, bytes)) else repr(path)
        os.write(log, (event + " " + repr(path) + "\\n").encode())
sys.addaudithook(note)
from chameleon_lib.cli import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass
class Server:
    """A server's process."""

    process: subprocess.Popen[str]
    port: int
    opened: Path

    @property
    def seconds(self) -> float:
        """Processor time so far."""
        spent = psutil.Process(self.process.pid).cpu_times()
        return float(spent.user + spent.system)

    def kill(self) -> None:
        """kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def start(
    store: Path, model: str, scratch: Path, *options: str, audited: bool = True
) -> Server:
    """Start a server and wait until it answers; an audited one is slower."""
    opened = scratch / f"opened-{len([*scratch.glob('opened-*')])}.txt"
    words = ["serve", "--store", str(store), "--backbone", model, "--port", "0", *options]
    called = ["-c", _AUDITED, str(opened)] if audited else ["-m", "chameleon_lib"]
    process = subprocess.Popen(
        [sys.executable, *called, *words],
        stdout=subprocess.PIPE, text=True, cwd=root(),
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root())},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        print(f"    {line.rstrip()}", flush=True)
        if " answers at http://" in line:
            return Server(process, int(line.split("/v1")[0].rpartition(":")[2]), opened)
    raise RuntimeError(f"The server ended with {process.wait()}.")


@contextmanager
def running(*args: Any, **named: Any) -> Iterator[Server]:
    """A server for the length of a block."""
    server = start(*args, **named)
    try:
        yield server
    finally:
        server.kill()


@dataclass(frozen=True)
class Client:
    """A user with a connection."""

    connection: HTTPConnection
    token: str

    def ask(self, model: str, prompt: str) -> tuple[str, str]:
        """The answer, and whose edit it is of."""
        body = json.dumps({"model": model, "prompt": prompt, "max_tokens": NEW_TOKENS})
        status, headers, entry = self.send(body.encode())
        if status != 200:
            raise RuntimeError(f"{status}: {entry}")
        return entry["choices"][0]["text"], headers[EDIT_HEADER]

    def send(self, body: bytes, path: str = "/v1/completions", token: str | None = None) -> Any:
        """Status, headers and JSON of a request."""
        headers = {
            "Authorization": f"Bearer {self.token if token is None else token}",
            "Content-Type": "application/json",
        }
        self.connection.request("POST", path, body, headers)
        response = self.connection.getresponse()
        return response.status, response.headers, json.loads(response.read())


class Crowd:
    """All users, each with a connection and a thread."""

    def __init__(self, tokens: Sequence[str], model: str, prompts: Sequence[str]) -> None:
        self.tokens, self.model, self.prompts = tokens, model, prompts
        self._threads = ThreadPoolExecutor(len(tokens))

    def ask(self, server: Server, requests: int, first: int = 0) -> tuple[float, list[list[Any]]]:
        """Every user asks so many prompts one after the other, all users at once.

        Returns:
            Seconds, and per user the answers.
        """
        clients = [
            Client(HTTPConnection("127.0.0.1", server.port, timeout=300), token)
            for token in self.tokens
        ]

        def run(at: int) -> list[Any]:
            return [clients[at].ask(self.model, self.prompt(at, first + number))
                    for number in range(requests)]  # fmt: skip

        began = time.perf_counter()
        found = list(self._threads.map(run, range(len(clients))))
        seconds = time.perf_counter() - began
        for client in clients:
            client.connection.close()
        return seconds, found

    def prompt(self, user: int, number: int) -> str:
        """What a user asks."""
        return self.prompts[(user * 7 + number) % len(self.prompts)]


# --- what is measured -----------------------------------------------------------------------------


def equality(
    crowd: Crowd, server: Server, alone: Callable[[int, int], str], requests: int
) -> dict[str, Any]:
    """Answers in flight beside those of single runs."""
    _, found = crowd.ask(server, requests)
    pairs = [(user, number) for user in range(len(found)) for number in range(requests)]
    same = [found[user][number] == (alone(user, number), "own") for user, number in pairs]
    return {"users": len(found), "answers": len(pairs), "equal": sum(same)}


def throughput(
    crowd: Crowd, edited: Server, plain: Server, rounds: int, requests: int
) -> dict[str, Any]:
    """Answers per second with and without edits, a round of each in alternating order.

    Both by the clock and by the processor time of the server, which other work does not lengthen.
    """
    rates: dict[str, list[float]] = {"edits": [], "base": []}
    own: dict[str, list[float]] = {"edits": [], "base": []}
    texts: dict[str, list[list[str]]] = {}
    for number in range(rounds):
        order = [("edits", edited), ("base", plain)]
        for name, server in order if number % 2 else order[::-1]:
            before = server.seconds
            seconds, found = crowd.ask(server, requests)
            rates[name].append(len(found) * requests / seconds)
            own[name].append(len(found) * requests / (server.seconds - before))
            texts[name] = [[text for text, _ in answers] for answers in found]
    return {
        "rounds": rounds, "answers per round": len(crowd.tokens) * requests,
        "same texts": texts["edits"] == texts["base"],
        "per second": _beside(rates), "per second of the processor": _beside(own),
    }  # fmt: skip


def _beside(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the ratio of paired rounds with its interval."""
    ratio = bootstrap_mean(np.log(np.array(rates["edits"]) / np.array(rates["base"])))
    ends = [float(np.exp(end)) for end in (ratio.value, ratio.low, ratio.high)]
    return {
        **{name: float(np.median(found)) for name, found in rates.items()},
        "ratio": ends[0], "95 %": ends[1:],
    }  # fmt: skip


def bad_requests(model: str, rng: random.Random) -> Iterator[tuple[str, bytes, str, bytes | None]]:
    """Kind, body, path and token of requests that must be refused, without an end; token None is
    the user's own."""
    good: dict[str, Any] = {"model": model, "prompt": "A bomb saves a riddle", "max_tokens": 4}
    paths = ["../../../etc/passwd", "/etc/shadow", "..\\..\\store.json", "file:///etc/passwd",
             "users/00000.parquet", "store.json", "pseudonyms.key", "tokens.json", "\0", "%2e%2e/",
             f"{model}/../{model}", "u-" + "0" * 32 + "-v" + "0" * 20, "~/.ssh/id_rsa"]  # fmt: skip
    wrong: list[Any] = [None, True, -1, 0, 10**400, 1e308, [], {}, [[]], "", "x" * 5000, 3.7, "7",
                        {"a": {"b": []}}, "\u202e\u0000", "🦎" * 400]  # fmt: skip
    numbers = [0, -1, 257, 10**9, 10**18, 2**63, 10**400, -(10**400), 1e300, 0.5, "4", True]

    def text() -> str:
        return "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0xD800),
                                       rng.randrange(0xE000, 0x110000)]))
                       for _ in range(rng.randrange(1, 200)))  # fmt: skip

    def changed(**values: Any) -> bytes:
        return json.dumps({**good, **values}).encode()

    while True:
        kind = rng.choice(["json", "types", "paths", "numbers", "unicode", "long", "token", "user",
                           "route", "unknown", "chat"])  # fmt: skip
        path, token, body = "/v1/completions", None, b""
        if kind == "json":
            whole = changed()
            body = rng.choice([
                whole[: rng.randrange(len(whole))], b"", rng.randbytes(rng.randrange(1, 500)),
                b"[" * rng.randrange(1, 60_000), b'{"a":' * rng.randrange(1, 20_000), b"null",
                b"[]", whole + b"}", b"1" * 5000, b'{"model": NaN}', b"\xef\xbb\xbf{",
                whole.decode().encode("utf-16"),
            ])  # fmt: skip
        elif kind == "types":
            name = rng.choice(["model", "prompt"])
            values = [value for value in wrong if not isinstance(value, str)]
            body = changed(**{name: rng.choice(values)})
        elif kind == "paths":
            name = rng.choice(["model", "model", "user", "lora_path", "adapter", "store"])
            body = changed(**{name: rng.choice(paths)})
        elif kind == "numbers":
            body = changed(max_tokens=rng.choice(numbers))
        elif kind == "unicode":
            half = rng.choice(["prompt", "model", "user"])
            body = rng.choice([changed(**{half: "\ud800" + text()}), changed(model=text()),
                               changed(user=text()), changed(**{text(): 1})])  # fmt: skip
        elif kind == "long":
            body = rng.choice([changed(prompt="a" * rng.randrange(20_001, 200_000)),
                               b" " * rng.randrange(262_145, 400_000),
                               changed(prompt="word " * 3_999)])  # fmt: skip
        elif kind == "token":
            body = changed()
            token = rng.choice([
                b"", b"x", rng.randbytes(20).hex().encode(), b"../" * 20,
                b"0" * 16 + b"." + b"A" * 43, "ü€".encode(), b"a" * 4000,
            ])  # fmt: skip
        elif kind == "user":
            body = changed(user=rng.choice(["user1", "nobody", text(), "user:0:0"]))
        elif kind == "route":
            body, path = changed(), "/" + rng.choice(
                ["v1", "..", "v1/../store.json", "v1/models/../../etc/passwd", "%2e%2e/%2e%2e",
                 "v1/load_lora_adapter", "docs", "store.json", "v1/completions/x", "\\", "//etc"]
            )  # fmt: skip
        elif kind == "unknown":
            name = rng.choice(["stop", "logprobs", "best_of", "suffix", "tools", "__class__", "n",
                               "stream", "temperature", "top_p", "explain"])  # fmt: skip
            body = changed(**{name: rng.choice([2, 7.5, "yes", [], {}])})
        else:
            path = "/v1/chat/completions"
            messages: Any = rng.choice([[], None, "x", [{}], [{"role": "user"}], [{"role": 1}],
                                   [{"role": "user", "content": 7}], {"role": "user"},
                                   [{"role": "system", "content": "x"}]])  # fmt: skip
            body = json.dumps({"model": model, "messages": messages}).encode()
        yield kind, body, path, token


_RAW = (b"", b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n{",
        b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/models HTTP/1.1\r\nAuthorization: " + b"A" * 100_000 + b"\r\n\r\n",
        b"GET /../../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n")  # fmt: skip


def raw(port: int, data: bytes) -> bytes:
    """What comes back for bytes that may be no HTTP; the connection is closed at once."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        try:
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            return line.recv(4096)
        except OSError:
            return b""


def malformed(
    crowd: Crowd, server: Server, store: Path, alone: Callable[[int, int], str], number: int
) -> dict[str, Any]:
    """Bad requests, with a good one after every hundredth; what was answered, and what touched."""
    rng, counts, unclear, wrong = random.Random(0), Counter[str](), [], 0
    before = tree_digests(store)
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    client, good, since = Client(connection, crowd.tokens[0]), 0, server.opened.stat().st_size
    for at, (kind, body, path, token) in enumerate(bad_requests(crowd.model, rng)):
        if at >= number:
            break
        if at % 100 == 0:
            good += 1
            wrong += client.ask(crowd.model, crowd.prompt(0, at)) != (alone(0, at), "own")
        if at % 25 == 0:
            answer = raw(server.port, _RAW[at // 25 % len(_RAW)])
            counts[answer.partition(b"\r\n")[0].decode("ascii", "replace")[:40] or "closed"] += 1
            continue
        try:
            shown = None if token is None else token.decode("latin-1")
            status, _, entry = client.send(body, path, shown)
            message = entry["error"]["message"]
            clear = isinstance(message, str) and message.endswith(".") and len(message) < 500
        except (HTTPException, OSError, ValueError, KeyError) as error:
            connection.close()
            status, clear, message = 0, False, f"{type(error).__name__}: {error}"
        counts[f"{kind} {status}"] += 1
        if not 400 <= status < 500 or not clear:
            unclear.append(f"{kind} {status} {path} {body[:80]!r}: {message}")
    connection.close()
    with server.opened.open("rb") as stream:
        stream.seek(since)
        opened = Counter(stream.read().decode().splitlines())
    inside = (str(store.resolve()), str(root()), sys.prefix, sys.base_prefix)
    outside = {
        line: times for line, times in opened.items()
        if not line.partition("'")[2].startswith(inside)
    }  # fmt: skip
    return {
        "requests": number, "good ones between": good, "good ones answered otherwise": wrong,
        "answers": dict(sorted(counts.items())), "no clear 4xx": unclear[:10],
        "number of no clear 4xx": len(unclear),
        "server alive": server.process.poll() is None,
        "store unchanged": tree_digests(store) == before,
        "opened outside store and code": outside,
        "opened in the store": sum(n for line, n in opened.items() if inside[0] in line),
    }  # fmt: skip


def killed(
    crowd: Crowd, store: Path, model: str, scratch: Path, alone: Callable[[int, int], str]
) -> dict[str, Any]:
    """kill -9 while everybody asks; the same store and tokens behind a new server."""
    server = start(store, model, scratch)
    with ThreadPoolExecutor(1) as beside:
        asked = beside.submit(crowd.ask, server, 50)
        time.sleep(2)
        server.kill()
        cut = asked.exception() is not None
    with running(store, model, scratch) as again:
        after = equality(crowd, again, alone, 1)
    return {"cut off while asking": cut, **after}


def crowd_of(store: ShardedStore, users: int, prompts: Sequence[str]) -> Crowd:
    """The users of a stand-in store, with a new token each."""
    tokens = Tokens(store.root)
    made = [tokens.make(f"user{at}") for at in range(users)]
    return Crowd(made, store.manifest.backbone, prompts)


def main(argv: Sequence[str]) -> int:
    """Run the parts that are asked for and print what came out as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=4, help="per user and round")
    parser.add_argument("--malformed", type=int, default=10_000)
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = str(checkpoint("decoder", "0"))
    backbone = load_backbone(model)
    prompts = paired_prompts(64, 3)[0]
    found: dict[str, Any] = {"model": backbone.name, "new tokens": NEW_TOKENS}
    with tempfile.TemporaryDirectory(prefix="chameleon-load-") as folder:
        scratch = Path(folder)
        store = stand_in_store(scratch / "store", backbone, asked.users, STRONG)
        crowd = crowd_of(store, asked.users, prompts)
        kept: dict[tuple[int, str], str] = {}

        def alone(user: int, number: int) -> str:
            key = user, crowd.prompt(user, number)
            if key not in kept:
                row = store.row(f"user{user}")
                assert row is not None
                (kept[key],) = backbone.generate(
                    [key[1]], max_new_tokens=NEW_TOKENS, edit=row.edit
                )
            return kept[key]

        bases = dict(zip(prompts, backbone.generate(prompts, max_new_tokens=NEW_TOKENS),
                         strict=True))  # fmt: skip
        with running(store.root, model, scratch) as edited:
            found["equality"] = equality(crowd, edited, alone, 2)
            differ = [text != bases[prompt] for (_, prompt), text in kept.items()]
            found["equality"]["other than the base's"] = sum(differ)
            print(json.dumps(found["equality"]), flush=True)
            if asked.malformed:
                found["malformed"] = malformed(crowd, edited, store.root, alone, asked.malformed)
                print(json.dumps(found["malformed"], indent=1), flush=True)
        found["kill -9"] = killed(crowd, store.root, model, scratch, alone)
        if asked.rounds:
            weak = stand_in_store(scratch / "weak", backbone, asked.users, WEAK)
            mild = crowd_of(weak, asked.users, prompts)
            with (
                running(weak.root, model, scratch, audited=False) as edited,
                running(weak.root, model, scratch, "--no-edits", audited=False) as plain,
            ):
                for server in (edited, plain):
                    mild.ask(server, 1)  # warm
                found["throughput"] = throughput(
                    mild, edited, plain, asked.rounds, asked.requests
                )
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
