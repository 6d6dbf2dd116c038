"""The files of a sharded store: one Parquet row per user, found by its hash without a scan.

In the folder of the store:

    store.json           the manifest: which job's edits these are
    pseudonyms.key       random key of the store, for the hashes of user ids
    users/00042.parquet  the rows whose hashes lie in the 42nd part of all hashes, sorted
    groups.parquet       edits of groups, each with the centre of its users
    work/                what a fit that is not over has made so far

Directions are columns of one fixed size: `slots` layers of width d, in bfloat16 or float32, so a
row takes :attr:`Manifest.row_bytes` whatever its user wrote. A shard is about 10,000 rows and
appears by a rename, so readers, who take no lock, see the old or the new one whole. Nothing is
compressed: directions are noise to a compressor, and a byte that is gone from a file is gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as arrow
import torch
from pyarrow import parquet
from torch import Tensor

from chameleon_lib.core.checks import FitCheck
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.paths import replace_text, sync_folder

FORMAT = 1
MANIFEST = "store.json"
USERS, GROUPS, WORK = "users", "groups.parquet", "work"
ROWS_PER_SHARD = 10_000
_READ_AT_ONCE = 4 << 20  # bytes of a row group, which is what a look-up reads
DTYPES = {"bfloat16": (torch.bfloat16, 2), "float32": (torch.float32, 4)}
Precision = Literal["bfloat16", "float32"]

# What became of a user in a fit.
FITTED, REFUSED, FEW, LEFT, FAILED, ASIDE = STATES = (
    "fitted", "refused", "too few pairs", "group only", "failed", "set aside",
)  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """Which job's edits a store holds.

    Attributes:
        task: Of the users.
        edits: Which edits were asked for: ``group``, ``own``.
        backbone: Name of the model.
        fingerprint: Of its weights.
        revision: Of the model on the hub, or empty.
        d: Width of the edited output.
        slots: Most layers of an edit.
        dtype: Precision of the stored directions.
        settings: ``EditSettings.canonical()`` of the fits.
        prompts: SHA-256 of the wording of the prompts.
        shards: Files that the users are spread over.
    """

    task: str
    edits: str
    backbone: str
    fingerprint: str
    revision: str
    d: int
    slots: int
    dtype: Precision
    settings: dict[str, Any]
    prompts: str
    shards: int

    @property
    def row_bytes(self) -> int:
        """Bytes that the directions of one row take: θ^P and θ^N of all slots."""
        return 2 * self.slots * self.d * DTYPES[self.dtype][1]

    @property
    def rows_per_group(self) -> int:
        """Rows of a row group: what a look-up reads stays near four megabytes."""
        return max(1, min(256, _READ_AT_ONCE // self.row_bytes))

    @cached_property
    def edit_settings(self) -> EditSettings:
        """The settings of the fits."""
        known = {item.name for item in fields(EditSettings)}
        if unknown := sorted(set(self.settings) - known):
            raise UserError(
                f"The store has settings that this version does not know ({', '.join(unknown)}); "
                "use the version of chameleon_lib that wrote it, or fit into another folder."
            )
        return EditSettings(**self.settings)

    @cached_property
    def fingerprints(self) -> tuple[bytes, bytes]:
        """Eight bytes each of settings and backbone, which stand in every row."""
        return short(digest(self.settings)), short(self.fingerprint.partition("@")[0])

    def shard_of(self, user: bytes) -> int:
        """The shard of a user's hash: hashes are spread evenly, so it is a part of their range."""
        return int.from_bytes(user[:8], "big") * self.shards >> 64

    def write(self, root: Path) -> None:
        text = {"format": FORMAT, **{f.name: getattr(self, f.name) for f in fields(self)}}
        replace_text(root / MANIFEST, json.dumps(text, indent=1, sort_keys=True) + "\n")

    @classmethod
    def read(cls, root: Path) -> Manifest:
        """The manifest of a store.

        Raises:
            FileNotFoundError: The folder is no sharded store.
            UserError: The file is damaged or of another version.
        """
        path = root / MANIFEST
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            if entry.pop("format") != FORMAT:
                raise UserError(
                    f"{path} is of another format than {FORMAT}; use the version of chameleon_lib "
                    "that wrote it, or fit into another folder."
                )
            return cls(**entry)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{path} is damaged ({error}); restore it from a backup, or fit into another "
                "folder."
            ) from error

    def check_same(self, other: Manifest, root: Path) -> None:
        """Refuse another job in the same folder.

        Raises:
            UserError: It names the first thing that differs.
        """
        for item in fields(self):
            if item.name in ("settings", "shards"):
                continue
            old, new = getattr(self, item.name), getattr(other, item.name)
            if old != new:
                raise UserError(
                    f"{root} holds the edits of a job with {item.name} {old!r}, not {new!r}; give "
                    "another folder, or the options of that job."
                )
        for name in sorted({*self.settings, *other.settings}):
            old, new = self.settings.get(name), other.settings.get(name)
            if old != new:
                raise UserError(
                    f"{root} holds edits that were fitted with {name} {old!r}, not {new!r}; give "
                    "another folder, or --set that value."
                )


@dataclass(frozen=True, eq=False)
class Row:
    """What a store holds of one user.

    Attributes:
        user: Hash of the user's id, 16 bytes.
        data: Of the history and the queries that were fitted, 8 bytes.
        state: One of ``STATES``.
        note: Why there is no own edit, a sentence; empty for ``fitted``.
        edit: The user's own edit; None if there is none.
        group: Number of the nearest group; −1 without groups.
        distance: To its centre, of unit vectors.
        n_pairs: Pairs of the own edit.
        n_identical: Pairs that were discarded.
        gain: log p of the held-out rows' own answers over no edit, nats per token, under the edit
            that answers; NaN where nothing was held out or nothing edits.
        control: The same under the own edit of another user; NaN where there was none.
        rows: Held-out rows that were scored.
        check: What the own edit does to texts that its fit did not see.
    """

    user: bytes
    data: bytes
    state: str
    note: str = ""
    edit: Edit | None = None
    group: int = -1
    distance: float = float("nan")
    n_pairs: int = 0
    n_identical: int = 0
    gain: float = float("nan")
    control: float = float("nan")
    rows: int = 0
    check: FitCheck | None = None


@dataclass(frozen=True, eq=False)
class Group:
    """The edit of a group.

    Attributes:
        number: From 0.
        edit: Fitted on the pooled pairs of its members; None if it was refused.
        centre: Unit mean of its members' vectors, (d_s,).
        members: Hashes of the users whose pairs were pooled, without those who were forgotten.
        forgotten: Members who were; above 0 the group must be fitted again.
        n_pairs: Pairs of the edit.
        check: What it does to users held out of its fit.
    """

    number: int
    edit: Edit | None
    centre: np.ndarray
    members: tuple[bytes, ...]
    forgotten: int = 0
    n_pairs: int = 0
    check: FitCheck | None = None

    @property
    def name(self) -> str:
        """Its key in the store."""
        return f"group-{self.number:04d}"


def short(hexadecimal: str) -> bytes:
    """Eight bytes of a SHA-256."""
    return bytes.fromhex(hexadecimal[:16].ljust(16, "0"))


# --- columns ------------------------------------------------------------------------------------


def _edit_columns(manifest: Manifest) -> list[tuple[str, arrow.DataType]]:
    side = arrow.binary(manifest.slots * manifest.d * DTYPES[manifest.dtype][1])
    return [
        ("layers", arrow.list_(arrow.int16(), manifest.slots)),  # -1 where an edit has fewer
        ("alpha_p", arrow.float32()),
        ("alpha_n", arrow.float32()),
        ("gates", arrow.binary(2 * manifest.slots)),  # null without any
        ("theta_p", side),  # null without an edit, which takes no byte
        ("theta_n", side),
        ("check", arrow.string()),
    ]


def user_schema(manifest: Manifest) -> arrow.Schema:
    """Columns of a shard; `user` first, by which it is sorted."""
    return arrow.schema(
        [
            ("user", arrow.binary(16)),
            ("data", arrow.binary(8)),
            ("settings", arrow.binary(8)),
            ("backbone", arrow.binary(8)),
            ("state", arrow.string()),
            ("note", arrow.string()),
            ("group", arrow.int32()),
            ("distance", arrow.float32()),
            ("n_pairs", arrow.int32()),
            ("n_identical", arrow.int32()),
            ("gain", arrow.float32()),
            ("control", arrow.float32()),
            ("rows", arrow.int32()),
            *_edit_columns(manifest),
        ]
    )


def group_schema(manifest: Manifest) -> arrow.Schema:
    """Columns of the groups' file."""
    return arrow.schema(
        [
            ("number", arrow.int32()),
            ("centre", arrow.list_(arrow.float32())),
            ("members", arrow.list_(arrow.binary(16))),
            ("forgotten", arrow.int32()),
            ("n_pairs", arrow.int32()),
            *_edit_columns(manifest),
        ]
    )


def _edit_record(edit: Edit | None, check: FitCheck | None, manifest: Manifest) -> dict[str, Any]:
    """The cells of an edit.

    Raises:
        UserError: It has more layers or another width than the store's rows.
    """
    checked = None if check is None else json.dumps(check.record(), sort_keys=True)
    if edit is None:
        return {"check": checked}
    count, slots = len(edit.layers), manifest.slots
    if edit.per_row or edit.d != manifest.d or count > slots:
        raise UserError(
            f"An edit of {count} layers of width {edit.d} does not fit rows of {slots} layers of "
            f"width {manifest.d}; fit into another folder."
        )
    gates = None
    if edit.gate_p is not None or edit.gate_n is not None:
        both = torch.ones(2, slots, dtype=torch.uint8)
        for row, gate in enumerate((edit.gate_p, edit.gate_n)):
            if gate is not None:
                both[row, :count] = gate.to(torch.uint8).cpu()
        gates = both.numpy().tobytes()
    return {
        "layers": [*edit.layers, *[-1] * (slots - count)],
        "alpha_p": edit.alpha_p,
        "alpha_n": edit.alpha_n,
        "gates": gates,
        "theta_p": _packed(edit.theta_p, manifest),
        "theta_n": _packed(edit.theta_n, manifest),
        "check": checked,
    }


def _packed(theta: Tensor, manifest: Manifest) -> bytes:
    """Directions (L, d) as the bytes of all slots."""
    kind, _ = DTYPES[manifest.dtype]
    whole = torch.zeros(manifest.slots, manifest.d, dtype=kind)
    whole[: len(theta)] = theta.detach().cpu().to(kind)
    return bytes(whole.view(torch.uint8).numpy().tobytes())


def stored_edit(edit: Edit, dtype: Precision) -> Edit:
    """The edit as the store will give it back: its directions in the store's precision."""
    kind, _ = DTYPES[dtype]
    rounded = {name: getattr(edit, name).detach().cpu().to(kind).float()
               for name in ("theta_p", "theta_n")}  # fmt: skip
    return Edit.from_record(edit.record()[0], {**edit.record()[1], **rounded})


def _edit_of(cells: dict[str, Any], manifest: Manifest) -> Edit | None:
    if cells["theta_p"] is None:
        return None
    layers = tuple(layer for layer in cells["layers"] if layer >= 0)
    kind, _ = DTYPES[manifest.dtype]
    shape = (manifest.slots, manifest.d)
    thetas = [
        torch.frombuffer(bytearray(cells[name]), dtype=kind).view(shape)[: len(layers)].float()
        for name in ("theta_p", "theta_n")
    ]
    parts: dict[str, Any] = {"alpha_p": cells["alpha_p"], "alpha_n": cells["alpha_n"]}
    if cells["gates"] is not None:
        both = torch.frombuffer(bytearray(cells["gates"]), dtype=torch.uint8).view(2, -1).bool()
        parts |= {"gate_p": both[0, : len(layers)], "gate_n": both[1, : len(layers)]}
    return Edit.of(manifest.edit_settings, layers, *thetas, **parts)


def _check_of(cells: dict[str, Any]) -> FitCheck | None:
    return None if cells["check"] is None else FitCheck.of(json.loads(cells["check"]))


def rows_table(rows: Sequence[Row], manifest: Manifest) -> arrow.Table:
    """Rows as columns, in their order."""
    settings, backbone = manifest.fingerprints
    named = ("user", "data", "state", "note", "group", "distance", "n_pairs", "n_identical",
             "gain", "control", "rows")  # fmt: skip
    records = [
        {name: getattr(row, name) for name in named}
        | {"settings": settings, "backbone": backbone}
        | _edit_record(row.edit, row.check, manifest)
        for row in rows
    ]
    return arrow.Table.from_pylist(records, schema=user_schema(manifest))


def row_of(cells: dict[str, Any], manifest: Manifest) -> Row:
    """The row of its cells.

    Raises:
        UserError: It was written by another job.
    """
    if (cells["settings"], cells["backbone"]) != manifest.fingerprints:
        raise UserError(
            f"The row {cells['user'].hex()} was written under other settings or for another model "
            "than its store names; restore the shard from a backup, or fit again."
        )
    own = {item.name: cells[item.name] for item in fields(Row) if item.name in cells}
    return Row(**{**own, "edit": _edit_of(cells, manifest), "check": _check_of(cells)})


def write_groups(root: Path, groups: Sequence[Group], manifest: Manifest) -> None:
    """Write the groups' file, or replace it."""
    records = [
        {
            "number": one.number, "centre": one.centre.tolist(), "members": list(one.members),
            "forgotten": one.forgotten, "n_pairs": one.n_pairs,
        }  # fmt: skip
        | _edit_record(one.edit, one.check, manifest)
        for one in groups
    ]
    table = arrow.Table.from_pylist(records, schema=group_schema(manifest))
    write_table(root / GROUPS, [table], manifest, schema=table.schema)


def read_groups(root: Path, manifest: Manifest) -> list[Group]:
    """All groups, by number; none if there is no file.

    Raises:
        UserError: The file is damaged.
    """
    path = root / GROUPS
    if not path.exists():
        return []
    with opened(path) as file:
        found = file.read().to_pylist()
    return [
        Group(
            cells["number"], _edit_of(cells, manifest), np.array(cells["centre"], dtype=np.float32),
            tuple(cells["members"]), cells["forgotten"], cells["n_pairs"], _check_of(cells),
        )  # fmt: skip
        for cells in found
    ]


# --- files --------------------------------------------------------------------------------------


def shard_path(root: Path, shard: int) -> Path:
    """The file of a shard."""
    return root / USERS / f"{shard:05d}.parquet"


def write_table(
    path: Path,
    tables: Iterable[arrow.Table],
    manifest: Manifest,
    *,
    schema: arrow.Schema | None = None,
    even: bool = True,
) -> None:
    """Write a file row group by row group under another name, then put it in the place of the old.

    Args:
        path: The file; its folder is made if needed.
        tables: Its rows, in order, in parts of any size.
        manifest: Of the store.
        schema: Of a shard if None.
        even: Make row groups of one size; else the parts are the row groups, as they are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.partial-{os.getpid()}-{os.urandom(4).hex()}")
    schema = schema or user_schema(manifest)
    try:
        with temporary.open("wb") as stream:
            with parquet.ParquetWriter(
                stream, schema, compression="none", use_dictionary=False,
                write_statistics=[schema.names[0]], store_schema=True,
            ) as writer:  # fmt: skip
                for table in regrouped(tables, manifest.rows_per_group) if even else tables:
                    if table.num_rows:
                        writer.write_table(table, row_group_size=manifest.rows_per_group)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def regrouped(tables: Iterable[arrow.Table], size: int) -> Iterator[arrow.Table]:
    """The same rows in tables of ``size`` rows, the last one smaller."""
    waiting: list[arrow.Table] = []
    count = 0
    for table in tables:
        waiting.append(table)
        count += table.num_rows
        if count < size:
            continue
        whole = arrow.concat_tables(waiting)
        for start in range(0, count - count % size, size):
            yield whole.slice(start, size)
        rest = whole.slice(count - count % size)
        waiting, count = ([rest], rest.num_rows) if rest.num_rows else ([], 0)
    if count:
        yield arrow.concat_tables(waiting)


@contextmanager
def opened(path: Path) -> Iterator[parquet.ParquetFile]:
    """A file of the store.

    Raises:
        FileNotFoundError: It is not there.
        UserError: It is damaged.
    """
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (arrow.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise UserError(
            f"{path} is damaged ({error}); restore it from a backup, or delete it and fit again: "
            "the users of the other files are not fitted twice."
        ) from error


def find_cells(path: Path, user: bytes) -> dict[str, Any] | None:
    """The cells of a user in a shard; None if there are none. Reads one row group."""
    try:
        with opened(path) as file:
            at = _group_of(file, user)
            if at is None:
                return None
            keys = file.read_row_group(at, columns=["user"])["user"].to_pylist()
            if user not in keys:
                return None
            found = file.read_row_group(at).slice(keys.index(user), 1).to_pylist()[0]
            return dict(found)
    except FileNotFoundError:
        return None


def _group_of(file: parquet.ParquetFile, user: bytes) -> int | None:
    """The row group that would hold a user: the last that begins at or before the hash."""
    low, high = 0, file.metadata.num_row_groups
    while low < high:
        middle = (low + high) // 2
        if file.metadata.row_group(middle).column(0).statistics.min <= user:
            low = middle + 1
        else:
            high = middle
    return low - 1 if low else None


def shard_tables(path: Path, columns: Sequence[str] | None = None) -> Iterator[arrow.Table]:
    """The row groups of a file, one at a time; nothing if it is not there."""
    try:
        with opened(path) as file:
            for at in range(file.metadata.num_row_groups):
                yield file.read_row_group(at, columns=columns)
    except FileNotFoundError:
        return


def without(table: arrow.Table, users: set[bytes]) -> arrow.Table:
    """The rows of other users."""
    keep = [user not in users for user in table["user"].to_pylist()]
    return table if all(keep) else table.filter(arrow.array(keep))
