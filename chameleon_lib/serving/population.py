"""The fit of a population: users in, a sharded store out, whatever is killed on the way.

    users → anti-join with what is done → units of fifty, in the order of hashes → engine → shards

A worker leaves the rows it finished as small files, every ``flush`` seconds (5, or 0 for each by
itself), under another name first, then renamed. The driver counts them, and when all units of a
shard are done merges them into the shard. So nothing that was written is done twice, after the
death of a worker or of the driver, at most the last ``flush`` seconds of a worker are, and nobody
is lost: the ids of a shard are counted when it is written. In the folder of the store:

    work/users/00042.jsonl       the users of a shard that are to be fitted, one a line
    work/users/00042.npy         their hashes and where their lines begin, in order of hash
    work/trying/00042-3-7        who was begun (+) and ended (-) in unit 7 of session 3
    work/rows/00042-3-7/0-4.parquet   rows of its users 0 to 4
    fit.lock                     held by the driver

A user who was begun three times in one session and never ended has taken three workers along: the
next worker sets the user aside. A death of the driver counts for nobody.
"""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as arrow

from chameleon_lib.core.task import HistoryItem, Query, User
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.progress import Progress
from chameleon_lib.serving.engines import DEATHS, Engine
from chameleon_lib.serving.files import FIT_LOCK, locked
from chameleon_lib.serving.sharded import ShardedStore
from chameleon_lib.serving.shards import (
    ASIDE,
    FAILED,
    ROWS_PER_SHARD,
    STATES,
    USERS,
    WORK,
    Manifest,
    Row,
    opened,
    rows_table,
    shard_path,
    short,
    write_table,
)

UNIT = 50  # users, at most
FEWEST_UNITS = 32
_NOTE = 300  # most letters of a note
_INDEX = np.dtype([("user", "V16"), ("data", "V8"), ("deaths", "u1"), ("at", "<u8")])
_ENTRY = struct.Struct("<16s8sBQ")  # the same
Unit = tuple[int, int, int, int]  # shard, session, first and last + 1 of its index
FitOne = Callable[[User, bytes, bytes], Row]


class Fitter(Protocol):
    """Makes what fits a user, once per worker process; picklable."""

    def open(self, root: Path) -> FitOne:
        """Loads the model; the function takes a user, the user's hash and that of the data."""


def data_of(user: User) -> bytes:
    """Eight bytes of all that a fit of the user reads and is scored on."""
    items = [[item.text, item.label] for item in user.history]
    queries = [[query.text, query.gold] for query in user.queries]
    return short(digest([user.task, items, queries]))


def user_line(user: User) -> bytes:
    """A user as a line of JSON."""
    return json.dumps(asdict(user), ensure_ascii=True).encode("ascii") + b"\n"


def user_of_line(line: bytes) -> User:
    """What :func:`user_line` wrote."""
    entry = json.loads(line)
    items = tuple(HistoryItem(**item) for item in entry["history"])
    return User(entry["id"], entry["task"], items, tuple(Query(**one) for one in entry["queries"]))


@dataclass(frozen=True)
class Population:
    """The work of all units; what workers receive.

    Attributes:
        root: The store.
        manifest: Its manifest.
        fitter: Makes the function that fits one user.
        flush: Seconds after which finished rows are written; 0 writes every one by itself.
    """

    root: Path
    manifest: Manifest
    fitter: Fitter
    flush: float = 5.0

    def name(self, unit: Unit) -> str:
        """Name of a unit in the work folder."""
        return f"{unit[0]:05d}-{unit[1]}-{unit[2]}"

    def progressed(self, unit: Unit) -> int:
        path = self.root / WORK / "trying" / self.name(unit)
        return path.stat().st_size if path.exists() else 0

    def finished(self, unit: Unit) -> int:
        """Users of a unit whose rows are written."""
        return len(_written(self.root / WORK / "rows" / self.name(unit)))

    def open(self) -> Callable[[Unit], None]:
        fit = self.fitter.open(self.root)
        return lambda unit: self._do(unit, fit)

    def _do(self, unit: Unit, fit: FitOne) -> None:
        """Fit the users of a unit who have no row yet."""
        work, (shard, _, first, last) = self.root / WORK, unit
        index = np.load(work / USERS / f"{shard:05d}.npy", mmap_mode="r")[first:last]
        rows, trying = work / "rows" / self.name(unit), work / "trying" / self.name(unit)
        done, begun = _written(rows), Counter(unended(trying))
        rows.mkdir(parents=True, exist_ok=True)
        trying.parent.mkdir(parents=True, exist_ok=True)
        made: list[tuple[int, Row]] = []
        since = time.monotonic()
        lines = (work / USERS / f"{shard:05d}.jsonl").open("rb")
        with trying.open("ab", buffering=0) as log, lines:
            for at, entry in enumerate(index):
                if at in done:
                    continue
                user, data = entry["user"].tobytes(), entry["data"].tobytes()
                deaths = int(entry["deaths"]) + begun[user.hex()]
                if deaths >= DEATHS:
                    note = f"The fit ended its worker process {deaths} times."
                    row = Row(user, data, ASIDE, note)
                else:
                    lines.seek(int(entry["at"]))
                    one = user_of_line(lines.readline())
                    log.write(b"+" + user.hex().encode() + b"\n")
                    row = _fitted(fit, one, user, data)
                    log.write(b"-" + user.hex().encode() + b"\n")
                made.append((at, row))
                if time.monotonic() - since >= self.flush:
                    self._write(rows, made)
                    made, since = [], time.monotonic()
        self._write(rows, made)

    def _write(self, folder: Path, made: Sequence[tuple[int, Row]]) -> None:
        """Rows of a unit, by the runs of their numbers: a file says by its name whom it holds."""
        runs: list[list[tuple[int, Row]]] = []
        for at, row in made:
            if runs and runs[-1][-1][0] == at - 1:
                runs[-1].append((at, row))
            else:
                runs.append([(at, row)])
        for run in runs:
            path = folder / f"{run[0][0]}-{run[-1][0]}.parquet"
            write_table(path, [rows_table([row for _, row in run], self.manifest)], self.manifest)


def _fitted(fit: FitOne, one: User, user: bytes, data: bytes) -> Row:
    """The row of a user; one whose fit raises is a row with the error."""
    try:
        return fit(one, user, data)
    except Exception as error:  # whatever it is, it is this user's alone
        told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        # The id is nobody's business, and neither is a long text.
        note = " ".join(told.replace(one.id, "the user").split())[:_NOTE]
        return Row(user, data, FAILED, note)


def _written(folder: Path) -> set[int]:
    """Numbers of the users of a unit whose rows are written."""
    found: set[int] = set()
    for path in folder.glob("*.parquet"):
        first, _, last = path.stem.partition("-")
        found.update(range(int(first), int(last) + 1))
    return found


def unended(path: Path) -> Iterator[str]:
    """Hashes that were begun and not ended, once for every time."""
    open_ones: list[str] = []
    try:
        lines = path.read_text(encoding="ascii").split()
    except FileNotFoundError:
        return
    for line in lines:
        if line.startswith("+"):
            open_ones.append(line[1:])
        elif line[1:] in open_ones:
            open_ones.remove(line[1:])
    yield from open_ones


# --- the driver -----------------------------------------------------------------------------------


@dataclass
class Fitted:
    """What a run of the driver did.

    Attributes:
        users: Users of the source.
        before: Of them, who had a row of the same data already.
        now: Rows that this run made.
        states: Rows by what became of the user, of the whole store.
        seconds: What the fits of this run took.
        gains: log p of held-out rows over no edit, nats per token, of every user who has some.
        controls: The same under another user's edit, beside ``gains``; NaN without.
        notes: Notes by state, with how many rows have them.
    """

    users: int = 0
    before: int = 0
    now: int = 0
    states: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    gains: np.ndarray = field(default_factory=lambda: np.zeros(0))
    controls: np.ndarray = field(default_factory=lambda: np.zeros(0))
    notes: dict[str, Counter[str]] = field(default_factory=dict)


def open_for_fit(root: Path, manifest: Manifest, users: int) -> ShardedStore:
    """The store of a job: made for so many users, or the one that is there.

    Raises:
        UserError: The folder holds another job's edits, or something else.
    """
    wanted = replace(manifest, shards=max(1, -(-users // ROWS_PER_SHARD)))
    try:
        old = Manifest.read(root)
    except FileNotFoundError:
        others = [path for path in root.glob("*") if path.name != FIT_LOCK]
        if others:
            raise UserError(
                f"{root} holds {others[0].name!r}, which is no store of fits; give a new folder."
            ) from None
        wanted.write(root)
        return ShardedStore(root)
    old.check_same(wanted, root)
    return ShardedStore(root)


def fit_population(
    store: ShardedStore,
    fitter: Fitter,
    users: Iterable[User],
    engine: Engine,
    *,
    flush: float = 5.0,
) -> Fitted:
    """Fit every user who has no row of the same data, and write the shards.

    Args:
        store: Of :func:`open_for_fit`, under its :func:`fit_lock`.
        fitter: Makes the function that fits one user.
        users: Of one task; read once, a few in memory.
        engine: Does the units.
        flush: Seconds after which a worker writes what it finished.

    Raises:
        UserError: A user who comes twice, or workers that end before they fit anybody.
    """
    work = Population(store.root, store.manifest, fitter, flush)
    done, start = Fitted(), time.monotonic()
    units = _divide(store, users, done)
    left = Counter(unit[0] for unit in units)
    for shard in _shards_with_rows(store.root):
        if shard not in left:  # killed between the last row and its merge
            merge(store, shard)
    over, ahead = 0, dict.fromkeys(units)
    with Progress("users fitted", done.now) as progress:
        for unit in engine.run(work, units):
            if unit is not None:
                over += unit[3] - unit[2]
                del ahead[unit]
                left[unit[0]] -= 1
                if not left[unit[0]]:
                    merge(store, unit[0])
            # A slow unit shows, too: units are handed out in order.
            partly = sum(map(work.finished, islice(ahead, 64)))
            progress.advance(max(0, over + partly - progress.done))
    shutil.rmtree(store.root / WORK, ignore_errors=True)
    done.seconds = time.monotonic() - start
    _count(store, done)
    return done


def _shards_with_rows(root: Path) -> list[int]:
    return sorted({int(path.name[:5]) for path in (root / WORK / "rows").glob("*-*-*")})


def _seen(store: ShardedStore) -> np.ndarray:
    """A number for every row of the store and of the work folder: of its user and its data."""
    found: list[np.ndarray] = []
    paths = [*sorted((store.root / USERS).glob("*.parquet")),
             *sorted((store.root / WORK / "rows").glob("*/*.parquet"))]  # fmt: skip
    for path in paths:
        with opened(path) as file:
            table = file.read(columns=["user", "data"])
        found.append(_marks(table["user"].to_pylist(), table["data"].to_pylist()))
    return np.unique(np.concatenate(found)) if found else np.zeros(0, dtype="<u8")


def _marks(users: Sequence[bytes], data: Sequence[bytes]) -> np.ndarray:
    keys = np.frombuffer(b"".join(user[:8] for user in users), dtype="<u8")
    return keys ^ np.frombuffer(b"".join(data), dtype="<u8")


def _divide(store: ShardedStore, users: Iterable[User], done: Fitted) -> list[Unit]:
    """Write who is to be fitted, shard by shard in the order of hashes, and cut it into units."""
    work, seen = store.root / WORK, _seen(store)
    deaths = _deaths(work / "trying")
    session = 1 + max((int(path.name.split("-")[1]) for path in (work / "rows").glob("*-*-*")),
                      default=0)  # fmt: skip
    shutil.rmtree(work / USERS, ignore_errors=True)
    (work / USERS).mkdir(parents=True)
    streams = [(work / USERS / f"{shard:05d}.jsonl").open("wb")
               for shard in range(store.manifest.shards)]  # fmt: skip
    entries: list[bytearray] = [bytearray() for _ in streams]
    ends: list[int] = [0] * len(streams)
    source = iter(users)
    try:
        while some := list(islice(source, 1000)):
            keys, data = [store.key_of(user.id) for user in some], [data_of(user) for user in some]
            known = np.isin(_marks(keys, data), seen)
            done.users += len(some)
            done.before += int(known.sum())
            for user, key, own, is_known in zip(some, keys, data, known, strict=True):
                if is_known:
                    continue
                shard = store.manifest.shard_of(key)
                entries[shard] += _ENTRY.pack(key, own, deaths.get(key.hex(), 0), ends[shard])
                ends[shard] += streams[shard].write(user_line(user))
    finally:
        for stream in streams:
            stream.close()
    units: list[Unit] = []
    # Few users are cut smaller, or the last unit would keep one worker busy and the others idle.
    size = max(1, min(UNIT, sum(map(len, entries)) // (_INDEX.itemsize * FEWEST_UNITS)))
    for shard, raw in enumerate(entries):
        index = np.frombuffer(bytes(raw), dtype=_INDEX)
        order = sorted(range(len(index)), key=lambda at: index["user"][at].tobytes())
        index = index[order]
        for one, other in zip(index[:-1], index[1:], strict=True):
            if one["user"] == other["user"]:
                raise UserError(
                    f"{_line_at(work, shard, int(one['at'])).id!r} is the id of two users; join "
                    "their rows, or give them ids of their own."
                )
        np.save(work / USERS / f"{shard:05d}.npy", index)
        units += [(shard, session, first, min(first + size, len(index)))
                  for first in range(0, len(index), size)]  # fmt: skip
    done.now = sum(unit[3] - unit[2] for unit in units)
    return units


def _line_at(work: Path, shard: int, at: int) -> User:
    with (work / USERS / f"{shard:05d}.jsonl").open("rb") as stream:
        stream.seek(at)
        return user_of_line(stream.readline())


def _deaths(folder: Path) -> Counter[str]:
    """Deaths of workers in earlier sessions, by hash: the last one of each may be the driver's."""
    found: Counter[str] = Counter()
    for path in folder.glob("*"):
        for user, count in Counter(unended(path)).items():
            found[user] += count - 1
    return found


def merge(store: ShardedStore, shard: int) -> None:
    """Write a shard from its rows of the work folder and its rows of before, sorted by hash.

    Of two rows of a user the later session's stays. The shard appears whole, then its parts go.
    """
    folders = sorted((store.root / WORK / "rows").glob(f"{shard:05d}-*"),
                     key=lambda path: int(path.name.split("-")[1]))  # fmt: skip
    with locked(store.root):
        final = shard_path(store.root, shard)
        files = [*([final] if final.exists() else []),
                 *(path for folder in folders for path in sorted(folder.glob("*.parquet")))]
        place: dict[bytes, tuple[int, int, int]] = {}  # user → file, row group, row
        for number, path in enumerate(files):
            with opened(path) as file:
                for group in range(file.metadata.num_row_groups):
                    keys = file.read_row_group(group, columns=["user"])["user"].to_pylist()
                    place |= {key: (number, group, row) for row, key in enumerate(keys)}
        wanted = store.root / WORK / USERS / f"{shard:05d}.npy"
        asked = np.load(wanted)["user"] if wanted.exists() else ()
        if lost := sum(one.tobytes() not in place for one in asked):
            raise UserError(f"{lost} users of shard {shard} have no row; run the fit again.")
        write_table(final, _picked(files, [place[key] for key in sorted(place)], store.manifest),
                    store.manifest)  # fmt: skip
        for folder in folders:
            shutil.rmtree(folder)
        for left in (*(store.root / WORK / "trying").glob(f"{shard:05d}-*"),
                     *(store.root / WORK / USERS).glob(f"{shard:05d}.*")):  # fmt: skip
            left.unlink()


def _picked(
    files: Sequence[Path], places: Sequence[tuple[int, int, int]], manifest: Manifest
) -> Iterator[arrow.Table]:
    """Rows by their places. Files are sorted and lie close, so a few stay in memory."""

    @lru_cache(maxsize=32)
    def part(number: int, group: int) -> arrow.Table:
        with opened(files[number]) as file:
            return file.read_row_group(group)

    size = manifest.rows_per_group
    for start in range(0, len(places), size):
        some = places[start : start + size]
        runs: list[arrow.Table] = []
        at = 0
        while at < len(some):
            end = at + 1
            while end < len(some) and some[end][:2] == some[at][:2]:
                end += 1
            rows = [row for *_, row in some[at:end]]
            runs.append(part(*some[at][:2]).take(rows))
            at = end
        yield arrow.concat_tables(runs)


def _count(store: ShardedStore, done: Fitted) -> None:
    """What the whole store says of its users, column by column."""
    gains, controls = [], []
    for cells in store.rows(("state", "note", "gain", "control")):
        done.states[cells["state"]] += 1
        if cells["note"]:
            done.notes.setdefault(cells["state"], Counter())[cells["note"]] += 1
        if cells["gain"] == cells["gain"]:
            gains.append(cells["gain"])
            controls.append(cells["control"])
    done.gains, done.controls = np.array(gains), np.array(controls)
    done.states = Counter({state: done.states[state] for state in STATES if done.states[state]})
