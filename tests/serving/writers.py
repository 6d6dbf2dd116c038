"""Writers that are killed, and writers that write at once; a process of its own, without torch.

    python -m tests.serving.writers kill ROOT
    python -m tests.serving.writers together ROOT

Every write holds one number, in the JSON and in all of its tensors, so a mixed file shows.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from chameleon_lib.serving.files import ProfileFiles, Stored

KEYS = ("alice", "bob", "carol")
KILLS, WRITERS, ROUNDS = 20, 8, 6
SIZE = 50_000  # 200 kB: long enough for a kill to meet a half-written file


def write(store: ProfileFiles, key: str, number: int) -> None:
    tensors = {name: np.full((2, SIZE // 4), number, np.float32) for name in ("p", "n")}
    store.put(key, Stored({"number": number, "key": key}, tensors))


def read(store: ProfileFiles, key: str) -> int:
    """The number of a profile, which must be the same wherever it stands."""
    stored = store.get(key)
    number = stored.content["number"]
    assert stored.content["key"] == key
    assert all((tensor == number).all() for tensor in stored.tensors.values()), (key, number)
    return int(number)


def forked(work: Callable[[], None]) -> int:
    """Runs ``work`` in a child process; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as problem:  # noqa: B036  a child must never return
        print(f"writer failed: {problem!r}", file=sys.stderr, flush=True)
    os._exit(1)


def nothing_left_over(root: Path, keys: int) -> None:
    """One file per profile, and nothing else but locks and the key."""
    names = [path.name for path in root.rglob("*") if path.is_file()]
    others = {name for name in names if not name.endswith(".safetensors")}
    assert len(names) - names.count("lock") - 1 == keys and others == {"lock", "pseudonyms.key"}


def kill(root: Path) -> None:
    """Twenty writers are killed at random moments; whatever a write returned from is there."""
    draw = random.Random(5)
    store = ProfileFiles(root)
    known = dict.fromkeys(KEYS, -1)
    number, in_the_middle = 0, 0

    for _ in range(KILLS):
        source, sink = os.pipe()

        def work(start: int = number, sink: int = sink) -> None:
            own = ProfileFiles(root)
            for at in range(start, start + 10_000):
                key = KEYS[at % len(KEYS)]
                write(own, key, at)
                os.write(sink, f"{key} {at}\n".encode())

        child = forked(work)
        os.close(sink)
        first = os.read(source, 65536)  # it has begun
        time.sleep(draw.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        said = first
        while more := os.read(source, 65536):
            said += more
        os.close(source)
        for line in said.decode().splitlines():
            key, at = line.split()
            known[key], number = int(at), int(at) + 1
        for key, at in known.items():
            if at >= 0:
                assert read(store, key) >= at, (key, at)
        in_the_middle += bool(list(root.rglob("*.partial*")))
        number += len(KEYS)
    for key in KEYS:
        write(store, key, number)
        assert read(store, key) == number
    nothing_left_over(root, len(KEYS))
    print(f"{KILLS} kills, {in_the_middle} in the middle of a file, {number} writes")


def together(root: Path) -> None:
    """Eight writers start on an empty folder; a reader sees whole profiles all the time."""

    def work(writer: int) -> None:
        store = ProfileFiles(root)
        for at in range(ROUNDS):
            for key in (*KEYS, f"own {writer}"):
                write(store, key, 1000 * writer + at)

    children = {forked(lambda writer=writer: work(writer)) for writer in range(WRITERS)}
    store, reads = ProfileFiles(root), 0
    while children:
        done, status = os.waitpid(-1, os.WNOHANG)
        if done:
            assert status == 0, "a writer failed"
            children.remove(done)
        for key in KEYS:
            if store.pseudonyms.path.exists() and store.path_of(key).exists():
                read(store, key)
                reads += 1
    lasts = {1000 * writer + ROUNDS - 1 for writer in range(WRITERS)}
    assert all(read(store, key) in lasts for key in KEYS)
    assert {read(store, f"own {writer}") for writer in range(WRITERS)} == lasts
    nothing_left_over(root, len(KEYS) + WRITERS)
    assert reads
    print(f"{WRITERS} writers, {reads} reads meanwhile")


if __name__ == "__main__":
    assert "torch" not in sys.modules
    {"kill": kill, "together": together}[sys.argv[1]](Path(sys.argv[2]))
