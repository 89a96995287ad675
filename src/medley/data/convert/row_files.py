"""Rows of a JSONL, CSV or TSV file as dictionaries, streamed, each with its line number; damaged lines come as the reason."""

import csv
import io
import json
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from medley.data.convert.catalogue_mapping import did_you_mean
from medley.manifest import join_uri, list_folder, open_storage
from medley.schema import InputError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_rows(raw: str, file: str, table: str, fields: Mapping[str, str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number, row), or (line number, why the line is no row), of `file` in the folder `raw`; `.gz` is unpacked.

    fields: key of the mapping's `table` -> field that at least one row must have. A missing file, one of another kind and a field that
    no row has (CSV: at the first line; JSONL: at the end) are InputErrors.
    """
    suffix = posixpath.splitext(file.removesuffix(".gz"))[1]
    if suffix not in (".jsonl", *_DELIMITERS):
        raise InputError(f"{table}.file is '{file}'", "a .jsonl, .csv or .tsv file, or one of them with .gz behind it", "convert the file")
    filesystem, root = open_storage(raw)
    try:
        with filesystem.open_input_stream(posixpath.join(root, file), buffer_size=1 << 20) as stream, io.BufferedReader(stream) as lines:
            yield from _json_rows(lines, file, table, fields) if suffix == ".jsonl" else _csv_rows(lines, _DELIMITERS[suffix], file, table, fields)
    except FileNotFoundError as error:
        folder, name = posixpath.split(file)
        found = list_folder(join_uri(raw, folder) if folder else raw)
        raise InputError(
            f"file '{file}' ({table}.file of the mapping) does not exist in '{raw}'",
            f"one of the files found: {', '.join(found[:20]) or 'none'}",
            f"correct the mapping or the folder{did_you_mean(name, found)}",
        ) from error
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"file '{file}' in '{raw}' cannot be read ({error})", "a whole readable file", "write it again") from error


def _json_rows(lines: io.BufferedReader, file: str, table: str, fields: Mapping[str, str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
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


def _csv_rows(lines: io.BufferedReader, delimiter: str, file: str, table: str, fields: Mapping[str, str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
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
                f"field '{field}' ({table}.{key} of the mapping) is in no row of '{file}'",
                f"one of the fields found: {', '.join(sorted(found)[:50]) or 'none'}",
                f"correct the mapping{did_you_mean(field, found)}",
            )
