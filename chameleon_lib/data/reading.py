"""Files of tables, whatever their shape, as columns of text cells: one reader per format.

A reader opens a file (or a folder of files, as Spark and Hive write them), names its columns, and
hands out the cells of those that are asked for; what nobody names is never looked into. How the
file is written is found from its first bytes and its header. Where two readings give different
rows, the one that loses none is taken and said, or the reader asks for the option that decides.
"""

from __future__ import annotations

import ast
import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from chameleon_lib.data.delimited import QUOTES, read_delimited
from chameleon_lib.data.source import SAMPLE, Columns, Record, Source
from chameleon_lib.errors import UserError

if TYPE_CHECKING:
    import pyarrow as arrow

_DELIMITED = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t"}
_JSON = (".json", ".jsonl", ".ndjson")
_PACKED = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
SUFFIXES = (*_DELIMITED, *_JSON, ".parquet", ".xlsx")
_TWICE = object()  # key of a JSON object under which the names stand that it has twice


class Number(str):
    """A number of a JSON file, digit by digit as it stands there."""


def open_table(path: Path, columns: Columns) -> Source:
    """Open a table.

    Raises:
        UserError: It is missing, of another kind, damaged, or can be read in several ways.
    """
    if columns.quotes not in (None, *QUOTES):
        raise UserError(f"--quotes takes {', '.join(QUOTES)}, not {columns.quotes!r}.")
    try:
        return _folder(path, columns) if path.is_dir() else _file(path, columns)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path} cannot be read ({reason}); check the path.") from error


def _file(path: Path, columns: Columns) -> Source:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in (*_PACKED, ".zip"):
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    with path.open("rb") as file:
        start = file.read(8)
    if suffix not in SUFFIXES and start[:4] != b"PAR1":
        raise UserError(f"{path} is no table that can be read; give one of {', '.join(SUFFIXES)}.")
    if suffix == ".parquet" or start[:4] == b"PAR1":
        return _parquet(path, columns)
    if start[:4] == b"\xd0\xcf\x11\xe0":
        raise UserError(f"{path} is an old Excel file; save it as .xlsx or CSV.")
    if suffix == ".xlsx" or (start[:2] == b"PK" and "xl/workbook.xml" in _members(path)):
        return _workbook(path, columns)
    text, said = _text(path, _unpacked(path), columns.encoding)
    if not text.strip():
        raise UserError(f"{path} is empty; give a table with at least one row.")
    if text.lstrip()[:1] == "<":
        raise UserError(f"{path} holds a page of HTML or XML; give the table itself.")
    source = _objects(path, text, columns) if suffix in _JSON else read_delimited(
        path, text, _DELIMITED[suffix], columns
    )  # fmt: skip
    return replace(source, said=[*said, *source.said])


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is a damaged archive ({error}); copy it again.") from error


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    marks = {b"\x1f\x8b": ".gz", b"BZ": ".bz2", b"\xfd7": ".xz", b"PK": ".zip"}
    kind = marks.get(content[:2])
    if kind is None or (kind == ".bz2" and content[2:3] != b"h"):
        return content
    try:
        if kind != ".zip":
            return _PACKED[kind](content)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            inside = [name for name in archive.namelist() if not re.search(r"(^|/)[._]|/$", name)]
            if len(inside) != 1:
                raise UserError(f"{path} holds {len(inside)} files; unpack it and give one.")
            return archive.read(inside[0])
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is a damaged archive ({error}); copy it again.") from error


def _text(path: Path, content: bytes, encoding: str | None) -> tuple[str, list[str]]:
    """Content as text, and what encoding it was if not UTF-8."""
    marks = {
        codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
        codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
    }  # fmt: skip
    found = encoding or next((name for mark, name in marks.items() if content[:4].startswith(mark)),
                             None)  # fmt: skip
    if found is None:  # every second byte of Latin text is empty in UTF-16
        even, odd = content[:1000:2].count(0), content[1:1000:2].count(0)
        half = len(content[:1000]) // 4
        found = "utf-16-le" if odd > half else "utf-16-be" if even > half else "utf-8"
    try:
        text = content.decode(found)
    except LookupError as error:
        raise UserError(
            f"--encoding takes the name of an encoding, such as windows-1252, not {encoding!r}."
        ) from error
    except UnicodeError as error:
        at = getattr(error, "start", 0)
        near = content[max(0, at - 12) : at + 12].decode("windows-1252", "replace")
        raise UserError(
            f"{path} is not {'UTF-8' if encoding is None else encoding} text (byte {at}); say what "
            f"it is, such as --encoding windows-1252 (it would say {' '.join(near.split())!r})."
        ) from error
    plain = found in ("utf-8", "utf-8-sig")
    return text.removeprefix("\ufeff"), [] if plain else [f"The text is {found}."]


# --- JSON -----------------------------------------------------------------------------------------


def _object(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        found[_TWICE] = {name for name in names if names.count(name) > 1}
    return found


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=Number, parse_float=Number, parse_constant=Number,
    strict=False,
)  # fmt: skip
_BETWEEN = re.compile(r"[\s,\ufeff\x1e]*")


def _objects(path: Path, text: str, columns: Columns) -> Source:
    """Objects one per line, one after the other, in a list, or a table of columns."""
    records: list[tuple[int, dict[Any, Any]]] = []
    start = _BETWEEN.match(text).end()  # type: ignore[union-attr]
    listed = text[start] == "["
    at, counted, number, closed = start + listed, 0, 1, not listed
    while (at := _BETWEEN.match(text, at).end()) < len(text):  # type: ignore[union-attr]
        number, counted = number + text.count("\n", counted, at), at
        if listed and text[at] == "]":
            at, closed = at + 1, True
            if text[at:].strip():
                raise UserError(f"{path} holds text behind its list; give one list alone.")
            break
        value, at = _decoded(path, text, at, number)
        if not isinstance(value, dict):
            raise UserError(f"{path}, line {number} is no JSON object; write one object per line.")
        records.append((number, value))
    if not closed:
        raise UserError(f"{path} is cut off: its list has no end; copy it again.")
    place = "line in the file"
    if len(records) == 1 and (inside := _inside(records[0][1], columns)):
        records, place = list(enumerate(inside, start=1)), "number"
    elif len({number for number, _ in records}) < len(records):
        records = [(place, record) for place, (_, record) in enumerate(records, start=1)]
        place = "number"
    names: dict[str, None] = {}
    for _, record in records:
        names.update(dict.fromkeys(record))
    names.pop(_TWICE, None)  # type: ignore[call-overload]
    for _, record in records[:SAMPLE]:
        for name, value in record.items():
            if isinstance(value, dict):
                names.update((f"{name}.{key}", None) for key in value if isinstance(key, str))
    known = list(names)

    def read(wanted: Sequence[int]) -> Iterator[Record]:
        paths = [known[i] for i in wanted]
        for number, record in records:
            yield number, [_field(record, name, path, number) for name in paths]

    return Source(known, read, place=place)


def _decoded(path: Path, text: str, at: int, number: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except (json.JSONDecodeError, RecursionError) as error:
        if text[at : at + 2] in ("{'", "{}"):  # Python's own way of writing it
            end = text.find("\n", at)
            end = len(text) if end < 0 else end
            try:
                return ast.literal_eval(text[at:end].strip()), end
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                pass
        raise UserError(
            f"{path}, line {number} is no JSON ({error}); write one object per line."
        ) from error


def _inside(record: dict[Any, Any], columns: Columns) -> list[dict[Any, Any]]:
    """Rows of a single object: a list under one of its names, or columns one by one."""
    lists = [v for v in record.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    if len(lists) == 1 and not {columns.user, columns.text} <= set(record):
        return [row for row in lists[0] if isinstance(row, dict)]
    cells = {name: list(value.values()) if isinstance(value, dict) else value
             for name, value in record.items()}  # fmt: skip
    whole = all(isinstance(value, list) for value in cells.values())
    if (
        whole
        and {columns.user, columns.text} <= set(record)
        and len(set(map(len, cells.values()))) == 1
    ):
        return [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    return []


def _field(record: dict[Any, Any], name: str, path: Path, number: int) -> Any:
    """The value of a name, or of a dotted way through objects."""
    if name in record:
        if name in record.get(_TWICE, ()):
            raise UserError(
                f"{path}, line {number} has {name!r} twice in one object, of which readers take "
                "different ones; write each name once."
            )
        return record[name]
    first, dot, rest = name.partition(".")
    inner = record.get(first)
    return _field(inner, rest, path, number) if dot and isinstance(inner, dict) else None


# --- parquet, workbooks, folders ------------------------------------------------------------------


def _parquet(path: Path, columns: Columns) -> Source:
    # Imported on first use: the package takes a third of a second that no other table needs.
    import pyarrow as arrow
    from pyarrow import compute, parquet

    try:
        # By its path alone: options for folders would read "user=ann" from the folder's name.
        file = parquet.ParquetFile(path)
        schema = file.schema_arrow
    except (arrow.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} is no parquet file ({reason}); export the table again.") from error
    ways = [(top.name, "") for top in schema]
    ways += [(top.name, inner.name) for top in schema if arrow.types.is_struct(top.type)
             for inner in top.type]  # fmt: skip
    names = [".".join(part for part in way if part) for way in ways]

    def read(wanted: Sequence[int]) -> Iterator[Record]:
        done, needed = 0, list(dict.fromkeys(names[i] for i in wanted))
        try:
            for batch in file.iter_batches(columns=needed):
                found = []
                for top, inner in (ways[i] for i in wanted):
                    cells = batch.column(top)
                    cells = compute.struct_field(cells, inner) if inner else cells
                    found.append(_column(cells, columns.encoding))
                yield from enumerate(zip(*found, strict=True), start=done + 1)
                done += batch.num_rows
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, rows from {done + 1} on hold text that is not UTF-8 (in one of "
                f"{needed}); say what it is, such as --encoding windows-1252."
            ) from error
        except (arrow.ArrowException, OverflowError, LookupError) as error:
            reason = str(error).split("\n")[0]
            raise UserError(f"{path} cannot be read ({reason}); export the table again.") from error

    return Source(names, read)


def _column(cells: arrow.Array, encoding: str | None) -> list[Any]:
    """Cells of a parquet column; a moment becomes text in UTC, for which no zone is needed."""
    import pyarrow as arrow

    kinds = arrow.types
    if isinstance(cells, arrow.ExtensionArray) and cells.type.extension_name != "arrow.uuid":
        cells = cells.storage
    if kinds.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    if kinds.is_timestamp(cells.type):
        cells = cells.cast(arrow.timestamp(cells.type.unit))
    kind = cells.type
    if (
        kinds.is_timestamp(kind)
        or kinds.is_date(kind)
        or kinds.is_decimal(kind)
        or kinds.is_integer(kind)
    ):
        return cells.cast(arrow.string()).to_pylist()
    if kinds.is_float16(kind) or kinds.is_float32(kind):  # whole up to 2**11 and 2**24 alone
        largest = 2**11 if kinds.is_float16(kind) else 2**24
        return [f"{value:.8e}" if value is not None and abs(value) >= largest else value
                for value in cells.to_pylist()]  # fmt: skip
    text = kinds.is_string(kind) or kinds.is_large_string(kind) or kind == arrow.string_view()
    if text and encoding:
        cells = cells.cast(arrow.large_binary())
        return [None if v is None else v.decode(encoding) for v in cells.to_pylist()]
    if kinds.is_fixed_size_binary(kind) and kind.byte_width == 16:
        return _uuids(cells.to_pylist())
    found = cells.to_pylist()
    if kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_fixed_size_binary(kind):
        return [None if v is None else v.decode(encoding or "utf-8") for v in found]
    return found


def _uuids(values: list[bytes | None]) -> list[str | None]:
    try:
        found = [None if value is None else value.decode("utf-8") for value in values]
        if all(value is None or value.isprintable() for value in found):
            return found
    except UnicodeDecodeError:
        pass
    return [None if value is None else str(uuid.UUID(bytes=value)) for value in values]


def _workbook(path: Path, columns: Columns) -> Source:
    import openpyxl  # half a second that no other table needs

    try:
        book = openpyxl.load_workbook(io.BytesIO(path.read_bytes()), read_only=True, data_only=True)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no workbook ({error}); save it again.") from error
    wanted = {name.casefold() for name in columns.named}
    headers: dict[str, tuple[int, list[str]]] = {}
    for sheet in book.worksheets:
        sheet.reset_dimensions()  # some writers note a size that is too small
        for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
            if any(cell is not None for cell in row):
                headers[sheet.title] = number, [str("" if c is None else c).strip() for c in row]
                break
    fitting = [t for t, (_, names) in headers.items() if wanted <= {n.casefold() for n in names}]
    chosen = columns.sheet or (fitting[0] if len(fitting) == 1 else None)
    if columns.sheet is None and not fitting and headers:
        chosen = next(iter(headers))  # whose columns the sentence will name
    if chosen not in headers:
        known = ", ".join(headers) or "none"
        why = f"has no sheet {columns.sheet!r} with cells (there are {known})"
        if columns.sheet is None and fitting:
            why = f"has the columns in several sheets ({', '.join(fitting)})"
        raise UserError(f"{path} {why}; say --sheet NAME.")
    top, names = headers[chosen]

    def read(indices: Sequence[int]) -> Iterator[Record]:
        rows = book[chosen].iter_rows(min_row=top + 1, values_only=True)
        for number, row in enumerate(rows, start=top + 1):
            if any(cell is not None for cell in row):
                yield number, [row[i] if i < len(row) else None for i in indices]

    said = [f"Rows are those of the sheet {chosen!r}."] if len(book.worksheets) > 1 else []
    return Source(names, read, said, "row of the sheet")


def _folder(path: Path, columns: Columns) -> Source:
    """Files of one table as Spark and Hive write them, in folders called name=value or not."""
    found = [p for p in path.rglob("*") if p.is_file() and p.stat().st_size
             and not any(part[0] in "._" for part in p.relative_to(path).parts)]  # fmt: skip
    found.sort(key=lambda p: [int(s) if s.isdecimal() else s
                              for s in re.split(r"(\d+)", str(p.relative_to(path)))])  # fmt: skip
    if not found:
        raise UserError(f"{path} is a folder without files; give a table.")
    opened = [(_file(p, columns), _partitions(p.relative_to(path))) for p in found]
    names = list(dict.fromkeys(n for source, parts in opened for n in (*source.names, *parts)))
    twice = [n for source, _ in opened for n in source.names if source.names.count(n) > 1]
    names += sorted(set(twice))

    def read(wanted: Sequence[int]) -> Iterator[Record]:
        number = 0
        for file, (source, parts) in zip(found, opened, strict=True):
            asked = [names[i] for i in wanted]
            for name in asked:
                if name not in source.names and name not in parts:
                    raise UserError(
                        f"{file} has no column {name!r}, as other files of {path} have."
                    )
            own = [name for name in asked if name in source.names]
            for _, cells in source.read([source.names.index(name) for name in own]):
                number += 1
                row = {**parts, **dict(zip(own, cells, strict=True))}
                yield number, [row[name] for name in asked]

    said = list(dict.fromkeys(sentence for source, _ in opened for sentence in source.said))
    return Source(
        names, read, [*said, f"The {len(found)} files count in the order of their names."]
    )


def _partitions(path: Path) -> dict[str, str | None]:
    pairs = (part.partition("=") for part in path.parts[:-1])
    return {
        name: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
        for name, equals, value in pairs
        if equals
    }
