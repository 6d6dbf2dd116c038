"""Measures the chain from users to a store, with a stand-in in the place of the fit.

    python -m workshop.population kills --engine local     # workers and the driver are ended
    python -m workshop.population speed --engine local     # one worker and two
    python -m workshop.population memory                   # of the driver
    python -m workshop.population store                     # a million rows: size, look-up

What is counted (who is lost, twice, repeated) does not depend on the machine; times and sizes do,
and are printed with what they were measured on. ``speed`` uses a fit that waits: it measures
whether the engine keeps its workers at work, not how many cores there are.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow

from chameleon_lib.serving.engines import Engine, LocalEngine, RayEngine
from chameleon_lib.serving.files import fit_lock
from chameleon_lib.serving.population import fit_population, open_for_fit
from chameleon_lib.serving.sharded import ShardedStore
from chameleon_lib.serving.shards import (
    DTYPES,
    FITTED,
    ROWS_PER_SHARD,
    USERS,
    Manifest,
    shard_path,
    user_schema,
    write_table,
)
from workshop.standin import StandIn, manifest, users

POISON = "user777"


def _engine(name: str, workers: int) -> Engine:
    if name == "ray":
        return RayEngine(workers)
    return LocalEngine(workers, preload=("torch",))


def drive(root: Path, args: argparse.Namespace) -> None:
    """One driver, as a process of its own."""
    with fit_lock(root / "store"):
        store = open_for_fit(root / "store", manifest(), args.users)
        work = StandIn(store.manifest, root / "fits", args.seconds,
                       poison=(POISON,) if args.poison else ())  # fmt: skip
        done = fit_population(
            store, work, users(args.users), _engine(args.engine, args.workers), flush=args.flush
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"states": done.states, "before": done.before, "now": done.now,
                      "seconds": round(done.seconds, 1), "peak_mb": round(peak)}))  # fmt: skip


def _start(root: Path, args: argparse.Namespace, **changes: Any) -> subprocess.Popen[str]:
    values = {"users": args.users, "engine": args.engine, "workers": args.workers,
              "seconds": args.seconds, "flush": args.flush, **changes}  # fmt: skip
    command = [sys.executable, "-m", "workshop.population", "drive", "--root", str(root)]
    for name, value in values.items():
        command += ["--poison"] if name == "poison" else [f"--{name}", str(value)]
    with (root / "log").open("ab") as log:  # a pipe that nobody reads would stop the driver
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)


def _result(driver: subprocess.Popen[str], root: Path) -> dict[str, Any]:
    out, _ = driver.communicate()
    if driver.returncode:
        told = (root / "log").read_text(encoding="utf-8", errors="replace")[-2000:]
        raise SystemExit(f"the driver ended with {driver.returncode}: {told}")
    return dict(json.loads(next(line for line in out.splitlines() if line.startswith('{"states'))))


def _fits(root: Path) -> list[list[str]]:
    path = root / "fits"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def kills(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Three workers and then the driver are ended with kill -9; a poisoned user besides."""
    driver = _start(root, args, poison=True)
    at, ended = iter((0.1, 0.25, 0.4)), 0
    mark = next(at)
    while driver.poll() is None:
        fits = _fits(root)
        if len(fits) < mark * args.users:
            time.sleep(0.05)
            continue
        if ended == 3:
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
            break
        try:
            os.kill(int(fits[-1][1]), signal.SIGKILL)
            ended += 1
            mark = next(at, 0.6)
        except ProcessLookupError:  # ended by the poison meanwhile
            time.sleep(0.05)
    time.sleep(3)  # its workers end
    result = _result(_start(root, args, poison=True), root)
    store = ShardedStore(root / "store")
    keys = [cells["user"] for cells in store.rows(("user",))]
    wanted = {store.key_of(user.id) for user in users(args.users)}
    counts = Counter(line[0] for line in _fits(root))
    aside = store.row(POISON)
    return {
        "engine": args.engine, "users": args.users, "workers ended": ended, "drivers ended": 1,
        "rows": len(keys), "lost": len(wanted - set(keys)), "twice": len(keys) - len(set(keys)),
        "fits repeated": sum(counts.values()) - len(counts), "done before the restart":
        result["before"], "set aside": aside and f"{POISON}: {aside.note}",
    }  # fmt: skip


def speed(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Users an hour between the first and the last fit, of one worker and of two."""
    found = {}
    for workers in (1, 2):
        folder = root / str(workers)
        folder.mkdir()
        _result(_start(folder, args, workers=workers), folder)
        times = sorted(float(line[2]) for line in _fits(folder))
        # Both at work: from where every worker has begun.
        found[workers] = 3600 * (len(times) - 1) / (times[-1] - times[0])
    return {"engine": args.engine, "users": args.users, "seconds of a fit": args.seconds,
            "users/h of 1": round(found[1]), "of 2": round(found[2]),
            "ratio": round(found[2] / found[1], 3)}  # fmt: skip


def memory(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory of the driver for few users and for many."""
    found = {}
    for count in (2_000, 50_000):
        folder = root / str(count)
        folder.mkdir()
        found[count] = _result(_start(folder, args, users=count, seconds=0), folder)["peak_mb"]
    return {"engine": args.engine, "peak MB of the driver, by users": found}


def _fill(root: Path, about: Manifest, count: int) -> list[bytes]:
    """A store of so many random rows; returns hashes of some."""
    about.write(root)
    store, generator = ShardedStore(root), np.random.default_rng(0)
    named = [store.key_of(f"user{at}") for at in range(200)]
    keys = np.concatenate([np.frombuffer(b"".join(named), dtype="V16"),
                           generator.integers(0, 256, (count - 200, 16), dtype=np.uint8).view("V16")
                           .ravel()])  # fmt: skip
    shards = np.array([about.shard_of(key.tobytes()) for key in keys])
    settings, backbone = about.fingerprints
    side = about.slots * about.d * DTYPES[about.dtype][1]
    schema = user_schema(about)
    for shard in range(about.shards):
        own = sorted(key.tobytes() for key in keys[shards == shard])
        n = len(own)

        def noise(n: int = n) -> arrow.Array:
            # Halves of bfloat16: any bits but those of infinity.
            raw = generator.integers(0, 256, (n, side), dtype=np.uint8) & 0xBF
            return arrow.FixedSizeBinaryArray.from_buffers(
                arrow.binary(side), n, [None, arrow.py_buffer(raw.tobytes())]
            )

        values = {
            "user": own, "data": [bytes(8)] * n, "settings": [settings] * n,
            "backbone": [backbone] * n, "state": [FITTED] * n, "note": [""] * n, "group": [0] * n,
            "distance": [0.1] * n, "n_pairs": [8] * n, "n_identical": [0] * n, "gain": [0.1] * n,
            "control": [0.0] * n, "rows": [4] * n, "layers": [list(range(about.slots))] * n,
            "alpha_p": [1.0] * n, "alpha_n": [1.0] * n, "gates": [None] * n,
            "theta_p": noise(), "theta_n": noise(), "check": [None] * n,
        }  # fmt: skip
        columns = [value if isinstance(value, arrow.Array) else arrow.array(value, schema.field(
            name).type) for name, value in values.items()]  # fmt: skip
        write_table(shard_path(root, shard), [arrow.table(columns, schema=schema)], about)
    return named


def store(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    """A store of many rows, and one shard of rows as large as those of a 7-billion model."""
    found: dict[str, Any] = {}
    wide = manifest(d=4096, slots=8)
    shards = -(-args.rows // ROWS_PER_SHARD)
    narrow = Manifest(**{**vars(manifest(d=128, slots=2)), "shards": shards})
    for name, about, count in (("narrow", narrow, args.rows), ("wide", wide, ROWS_PER_SHARD)):
        folder = root / name
        folder.mkdir()
        start = time.monotonic()
        _fill(folder, about, count)
        wrote = time.monotonic() - start
        size = sum(path.stat().st_size for path in (folder / USERS).iterdir())
        made, times, busy = ShardedStore(folder), [], time.process_time()
        for at in range(200):
            start = time.perf_counter()
            assert made.row(f"user{at}") is not None
            times.append(1000 * (time.perf_counter() - start))
        busy = time.process_time() - busy
        start, cpu = time.perf_counter(), time.process_time()
        made.forget("user7")
        forgot, cpu = time.perf_counter() - start, time.process_time() - cpu
        assert made.row("user7") is None
        found[name] = {
            "rows": count, "bytes a row, computed": about.row_bytes,
            "bytes a row, on disk": round(size / count), "written s": round(wrote),
            "look-up ms, median": round(float(np.median(times)), 1),
            "p95": round(float(np.percentile(times, 95)), 1), "max": round(max(times), 1),
            "look-ups": len(times), "look-up ms of processor": round(5 * busy, 1),
            "forget s": round(forgot, 2), "forget s of processor": round(cpu, 2),
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["drive", "kills", "speed", "memory", "store"])
    parser.add_argument("--root", type=Path)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--flush", type=float, default=0.0)
    parser.add_argument("--poison", action="store_true")
    args = parser.parse_args()
    if args.what == "drive":
        drive(args.root, args)
        return
    root = Path(tempfile.mkdtemp(prefix="population-", dir=args.root))
    try:
        measure = {"kills": kills, "speed": speed, "memory": memory, "store": store}[args.what]
        print(json.dumps(measure(root, args), indent=1))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
