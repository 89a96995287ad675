"""Rows of a JSONL, CSV, TSV or separated file as dictionaries, streamed, each with its line number; damaged lines come as the reason."""

import csv
import io
import json
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from medley.data.convert.catalogue_mapping import did_you_mean
from medley.manifest import join_uri, list_folder, open_storage
from medley.schema import InputError

Rows = Iterator[tuple[int, dict[str, Any] | str]]
"""(line number, row), or (line number, why the line is no row)"""
RowReader = Callable[[str, str, str, Mapping[str, str]], Rows]
"""What reads the rows of a file: (raw folder, file, table, fields that at least one row must have, by their key in the mapping)"""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_rows(raw: str, file: str, table: str, fields: Mapping[str, str]) -> Rows:
    """The rows of `file` in the folder `raw`; `.gz` is unpacked.

    fields: key of the mapping's `table` -> field that at least one row must have. A missing file, one of another kind and a field that
    no row has (CSV: at the first line; JSONL: at the end) are InputErrors.
    """
    suffix = posixpath.splitext(file.removesuffix(".gz"))[1]
    if suffix not in (".jsonl", *_DELIMITERS):
        raise InputError(f"{table}.file is '{file}'", "a .jsonl, .csv or .tsv file, or one of them with .gz behind it", "convert the file")
    with open_lines(raw, file) as lines:
        yield from _json_rows(lines, file, table, fields) if suffix == ".jsonl" else _csv_rows(lines, _DELIMITERS[suffix], file, table, fields)


def read_separated(raw: str, file: str, separator: str, names: Sequence[str], encoding: str) -> Rows:
    """The rows of a file without a header: cells `names` in each line, `separator` between them, nothing quoted; blank lines are skipped.

    encoding: one that gives every byte a letter, such as latin-1.
    """
    with open_lines(raw, file) as lines:
        for line_number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            cells = line.decode(encoding).rstrip("\r\n").split(separator)
            is_row = len(cells) == len(names)
            yield line_number, dict(zip(names, cells, strict=True)) if is_row else f"line has {len(cells)} cells, expected {len(names)}"


def bad_line(raw: str, file: str, line_number: int, reason: str, column: str = "") -> InputError:
    """The refusal of a line of a published data set, where a bad one means a damaged copy."""
    place = f" in column '{column}'" if column else ""
    return InputError(f"line {line_number} of '{file}' in '{raw}' is bad{place}: {reason}", "the published file, whole", "copy it again")


@contextmanager
def open_lines(raw: str, file: str) -> Iterator[io.BufferedReader]:
    """The bytes of a file, line by line; `.gz` is unpacked. A missing file and one that cannot be read to its end are InputErrors."""
    filesystem, root = open_storage(raw)
    try:
        with filesystem.open_input_stream(posixpath.join(root, file), buffer_size=1 << 20) as stream, io.BufferedReader(stream) as lines:
            yield lines
    except FileNotFoundError as error:
        folder, name = posixpath.split(file)
        found = list_folder(join_uri(raw, folder) if folder else raw)
        raise InputError(
            f"file '{file}' does not exist in '{raw}'",
            f"one of the files found: {', '.join(found[:20]) or 'none'}",
            f"correct the file name or the folder{did_you_mean(name, found)}",
        ) from error
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"file '{file}' in '{raw}' cannot be read ({error})", "a whole readable file", "write it again") from error


def _json_rows(lines: io.BufferedReader, file: str, table: str, fields: Mapping[str, str]) -> Rows:
    missing, found = set(fields.values()), set[str]()
    for line_number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_constant)
        except (ValueError, RecursionError) as error:
            yield line_number, f"line is not JSON ({str(error)[:200]})"
            continue
        if not isinstance(row, dict):
            yield line_number, "line is not a JSON object"
            continue
        if missing:
            missing -= row.keys()
            found |= row.keys()
        yield line_number, row
    _check_fields(missing, found, file, table, fields)


def _csv_rows(lines: io.BufferedReader, delimiter: str, file: str, table: str, fields: Mapping[str, str]) -> Rows:
    # Bytes that are no UTF-8 become lone surrogates, which the row's own check reports: one bad name must not stop the file.
    reader = csv.reader(io.TextIOWrapper(lines, encoding="utf-8-sig", errors="surrogateescape", newline=""), delimiter=delimiter)
    header = next(reader, [])
    _check_fields(set(fields.values()) - set(header), set(header), file, table, fields)
    if repeated := {name for name in fields.values() if header.count(name) > 1}:
        raise InputError(f"header of '{file}' has {', '.join(sorted(repeated))} twice", "one column per field", "rename or remove one of them")
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, f"line is not CSV ({error})"
            continue
        if len(cells) == len(header):
            yield reader.line_num, dict(zip(header, cells, strict=True))
        elif cells:
            yield reader.line_num, f"line has {len(cells)} cells, the header {len(header)}"


def _constant(name: str) -> None:
    """NaN is how many programs write a missing value; infinity is an error."""
    if name != "NaN":
        raise ValueError(f"{name} is not a JSON number")


def _check_fields(missing: set[str], found: set[str], file: str, table: str, fields: Mapping[str, str]) -> None:
    for key, field in fields.items():
        if field in missing:
            raise InputError(
                f"field '{field}' ({table}.{key}) is in no row of '{file}'",
                f"one of the fields found: {', '.join(sorted(found)[:50]) or 'none'}",
                f"correct the mapping or the file{did_you_mean(field, found)}",
            )
