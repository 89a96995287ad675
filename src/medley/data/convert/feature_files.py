"""Precomputed item vectors from a file, aligned to the items by id, never by the order of rows.

`vectors.npy` with a file of ids (one a line, in the order of the vectors), or Parquet with the columns `item_id` and `vector`. Vectors are read
by place from the .npy file itself, or from an unpacked copy of the Parquet column in a temporary file: what stays in memory is the ids.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medley import schema
from medley.data.convert.catalogue_mapping import FeatureFile
from medley.data.convert.row_files import open_lines
from medley.manifest import join_uri, open_storage
from medley.schema import InputError

logger = logging.getLogger(__name__)

VECTOR = "vector"
ROWS_PER_BATCH = 4_096


class FeatureVectors:
    """An open file of vectors and the place of each id's vector in it."""

    def __init__(self, label: str, stream: Any, place_of_id: Mapping[str, int], num_bytes_before: int, width: int, dtype: np.dtype):
        self.label, self.width = label, width
        self._stream, self._place_of_id, self._num_bytes_before, self._dtype = stream, place_of_id, num_bytes_before, dtype

    @property
    def column_type(self) -> pa.DataType:
        """Type of the items' column."""
        return pa.list_(pa.float32(), self.width)

    def fill(self, items: list[dict[str, Any]], column: str) -> int:
        """Set `column` of these items to their vectors, None where the file has none; returns how many have one."""
        for item in items:
            place = self._place_of_id.get(item[schema.ITEM_ID])
            item[column] = None if place is None else self._read(place)
        return sum(item[column] is not None for item in items)

    def _read(self, place: int) -> np.ndarray:
        size = self.width * self._dtype.itemsize
        self._stream.seek(self._num_bytes_before + place * size)
        # What float32 cannot hold becomes infinite, which prepare counts as missing, with the reason.
        with np.errstate(over="ignore"):
            return np.frombuffer(self._stream.read(size), self._dtype).astype(np.float32)

    def report_unknown(self, item_ids: set[str]) -> int:
        """How many ids of the file are no item's; they are logged and left out."""
        unknown = [id_ for id_ in self._place_of_id if id_ not in item_ids]
        if unknown:
            logger.warning("%s | %d of %d ids are no item's, the first: %s", self.label, len(unknown), len(self._place_of_id), ", ".join(unknown[:5]))
        return len(unknown)


@contextmanager
def open_features(raw: str, name: str, source: FeatureFile) -> Iterator[FeatureVectors]:
    """The vectors of feature column `name`; a missing or damaged file, another shape or type and an id that stands twice are InputErrors."""
    label = f"features '{name}' of '{source.file}'"
    filesystem, path = open_storage(join_uri(raw, source.file))
    with ExitStack() as open_files:
        try:
            stream = open_files.enter_context(filesystem.open_input_file(path))
            if source.ids is None:
                vectors = _open_parquet(stream, open_files.enter_context(tempfile.TemporaryFile()), label)
            else:
                vectors = _open_npy(stream, raw, source.ids, label)
        except FileNotFoundError as error:
            raise InputError(f"{label}: the file does not exist in '{raw}'", "a .npy or Parquet file in the raw folder", "correct the path") from error
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{label}: cannot be read ({error})", "a whole file", "write or copy it again") from error
        yield vectors


def _open_npy(stream: Any, raw: str, ids: str, label: str) -> FeatureVectors:
    (num_vectors, width), dtype = _read_npy_header(stream, label)
    num_bytes_before = stream.tell()
    places = _read_ids(raw, ids, label)
    if len(places) != num_vectors:
        raise InputError(f"{label}: {num_vectors} vectors, {len(places)} ids in '{ids}'", "one id per vector", "write both again")
    expected_size = num_bytes_before + num_vectors * width * dtype.itemsize
    if stream.size() != expected_size:
        raise InputError(f"{label}: {stream.size()} bytes", f"{expected_size} bytes by its header", "write or copy it again")
    return FeatureVectors(label, stream, places, num_bytes_before, width, dtype)


def _read_npy_header(stream: BinaryIO, label: str) -> tuple[tuple[int, int], np.dtype]:
    """Shape and type of a .npy file; afterwards the stream stands at its first number."""
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(stream)
    except ValueError as error:
        raise InputError(f"{label}: no .npy file ({error})", "what numpy.save writes", "write it again") from error
    if len(shape) != 2 or shape[1] < 1 or is_fortran or dtype.kind != "f":
        order = ", column-major" if is_fortran else ""
        raise InputError(f"{label}: shape {shape} of {dtype}{order}", "(vectors, width) of float16, float32 or float64, row-major", "save it so")
    return shape, dtype


def _read_ids(raw: str, file: str, label: str) -> dict[str, int]:
    """id -> place; empty lines and ids that stand twice are refused with their line."""
    places: dict[str, int] = {}
    with open_lines(raw, file) as lines:
        for number, line in enumerate(lines, 1):
            try:
                id_ = line.decode().rstrip("\r\n")
            except UnicodeDecodeError:
                id_ = ""
            if not id_.strip():
                raise InputError(f"{label}: line {number} of '{file}' is empty or not UTF-8", "one id a line", "write the ids again")
            if id_ in places:
                raise InputError(f"{label}: id '{id_[:100]}' stands twice, again in line {number} of '{file}'", "every id once", "remove one of them")
            places[id_] = number - 1
    return places


def _open_parquet(stream: Any, unpacked: BinaryIO, label: str) -> FeatureVectors:
    """Write all vectors as float32 behind one another into `unpacked`. A null vector counts as missing."""
    parquet = pq.ParquetFile(stream, page_checksum_verification=True)
    found = parquet.schema_arrow
    type_ = found.field(VECTOR).type if VECTOR in found.names else None
    if schema.ITEM_ID not in found.names or not pa.types.is_floating(getattr(type_, "value_type", pa.null())):
        raise InputError(
            f"{label}: columns {', '.join(f'{field.name}: {field.type}' for field in found)}",
            f"'{schema.ITEM_ID}' and '{VECTOR}' (list of floats)",
            "rename or cast the columns",
        )
    seen, places, width = set[str](), dict[str, int](), 0
    for batch in parquet.iter_batches(ROWS_PER_BATCH, columns=[schema.ITEM_ID, VECTOR]):
        vectors = batch.column(VECTOR).cast(pa.list_(pa.float32()))
        for row, id_ in enumerate(batch.column(schema.ITEM_ID).cast(pa.string()).to_pylist()):
            if not id_ or id_ in seen:
                raise InputError(f"{label}: id {id_!r} of row {len(seen)} is empty or stands twice", "every id once", "correct the rows")
            seen.add(id_)
            if not vectors[row].is_valid:
                continue
            numbers = vectors[row].values.to_numpy(zero_copy_only=False).astype("<f4")
            width = width or len(numbers)
            if len(numbers) != width or not width:
                raise InputError(f"{label}: vector of '{id_}' has {len(numbers)} numbers", f"{width or 'at least 1'}, as the first", "correct the rows")
            places[id_] = len(places)
            unpacked.write(numbers.tobytes())
    if not places:
        raise InputError(f"{label}: no vector in it", "at least one", "write it again")
    return FeatureVectors(label, unpacked, places, 0, width, np.dtype("<f4"))
