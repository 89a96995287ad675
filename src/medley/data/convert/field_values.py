"""One field of a raw row → one value of a table: text, id, tags, number, time; what cannot be read says why."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from medley import schema
from medley.data.convert.catalogue_mapping import ItemsMapping

NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
"""A plain number: one with leading zeros is a code, not a number."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class BadValue(ValueError):
    """Why a row, or one media file of it, is left out."""

    def __init__(self, column: str, reason: str):
        super().__init__(reason)
        self.column = column


def read_string(row: Mapping[str, Any], field: str, column: str) -> str | None:
    """The field as text, None when it is absent, null or blank; a list of texts is joined by spaces, other structures stay JSON."""
    value = row.get(field)
    if value is None:
        return None
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        value = " ".join(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadValue(column, f"field '{field}' is not valid UTF-8") from None
    return text if text.strip() else None


def read_id(row: Mapping[str, Any], field: str, column: str) -> str:
    """The field as an id; an empty one, a fraction and a structure are bad."""
    value = row.get(field)
    if isinstance(value, (bool, float, list, dict)):
        raise BadValue(column, f"field '{field}' is no string or whole number")
    text = read_string(row, field, column)
    if text is None:
        raise BadValue(column, f"field '{field}' is empty")
    return text


def read_new_id(row: Mapping[str, Any], field: str, column: str, known: set[str]) -> str:
    """Like `read_id`; an id of `known` is bad."""
    text = read_id(row, field, column)
    if text in known:
        raise BadValue(column, f"'{text[:100]}' is the id of an earlier row")
    return text


def read_tags(row: Mapping[str, Any], column: str, mapping: ItemsMapping) -> list[str] | None:
    """The field as a list of tags, by the mapping's rule for `column`; None when there is none."""
    source = mapping.tags[column]
    field = source if isinstance(source, str) else source.field
    value = row.get(field)
    if isinstance(value, str) and not isinstance(source, str):
        value = [tag.strip() for tag in value.split(source.separator)]
    elif isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise BadValue(column, f"field '{field}' begins like a JSON list and is none") from None
    if value is not None and not isinstance(value, list):
        value = [value]
    tags = [read_string({field: tag}, field, column) for tag in value or ()]
    return [tag for tag in tags if tag] or None


def read_attributes(row: Mapping[str, Any], attributes: Mapping[str, str], types: Mapping[str, pa.DataType]) -> dict[str, Any]:
    """Attribute column -> its value, a number where the column's type is double."""
    texts = {column: read_string(row, field, column) for column, field in attributes.items()}
    return {column: float(text) if text is not None and types[column] == pa.float64() else text for column, text in texts.items()}


def read_float(row: Mapping[str, Any], field: str, column: str) -> float | None:
    """The field as a number that 32 bits hold, None when it is empty."""
    text = read_string(row, field, column)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        raise BadValue(column, f"'{text[:100]}' is not a number") from None
    if not abs(number) <= _FLOAT32_MAX:
        raise BadValue(column, f"{text[:100]} is not a finite number of 32 bits")
    return number


def read_dwell(row: Mapping[str, Any], field: str) -> float | None:
    """The field as seconds, 0 or more, None when it is empty."""
    seconds = read_float(row, field, schema.DWELL_SECONDS)
    if seconds is not None and seconds < 0:
        raise BadValue(schema.DWELL_SECONDS, f"{seconds:g} seconds are negative")
    return seconds


def read_split(row: Mapping[str, Any], field: str) -> str | None:
    """The field as train, valid or test, None when it is empty."""
    split = read_string(row, field, schema.SPLIT)
    if split is not None and split not in schema.SPLITS:
        raise BadValue(schema.SPLIT, f"'{split[:100]}' is none of {', '.join(schema.SPLITS)}")
    return split


def read_timestamp(row: Mapping[str, Any], field: str, timestamp_format: str) -> datetime:
    """The time in UTC; an absent one is as bad as an unreadable one, because the split by time has no place for it."""
    text = read_string(row, field, schema.TIMESTAMP)
    if text is None:
        raise BadValue(schema.TIMESTAMP, f"field '{field}' is empty")
    try:
        if timestamp_format in ("seconds", "milliseconds"):
            # timedelta keeps microseconds and refuses NaN, infinity and years after 9999: milliseconds read as seconds end there.
            return _EPOCH + timedelta(**{timestamp_format: float(text)})
        moment = datetime.fromisoformat(text) if timestamp_format == "iso" else datetime.strptime(text, timestamp_format)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise BadValue(schema.TIMESTAMP, f"'{text[:100]}' is not a time of the format {timestamp_format}") from None
