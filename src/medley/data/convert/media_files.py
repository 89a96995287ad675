"""Media files of the raw folder: where an item's picture or clip is, and its bytes."""

import posixpath
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.fs as pafs

from medley import schema
from medley.data.convert.catalogue_mapping import PLACEHOLDER, inside
from medley.data.convert.field_values import BadValue, read_string
from medley.data.convert.table_files import Quarantine
from medley.manifest import list_folder, open_storage
from medley.media import MediaConfig

NUM_READERS = 16
"""Threads that read media files; an object store takes tens of milliseconds for each."""


def names_by_stem(uri: str) -> dict[str, str]:
    """Name without ending -> name, of the files of a folder; of names that differ only in their ending the last by name."""
    return {posixpath.splitext(name)[0]: name for name in list_folder(uri)}


def media_path(row: Mapping[str, Any], modality: str, source: str) -> str | None:
    """The relative path of a media file; None when a field it is made of is empty."""
    if "{" not in source:
        return read_string(row, source, modality)
    values = {field: read_string(row, field, modality) for field in PLACEHOLDER.findall(source)}
    return None if None in values.values() else PLACEHOLDER.sub(lambda match: values[match[1]] or "", source)


def fill_media(raw: str, items: list[dict[str, Any]], modality: str, readers: ThreadPoolExecutor, quarantine: Quarantine) -> int:
    """Replace the paths in the items' column `modality` by the files' bytes, or by None with a report; returns how many have bytes."""
    filesystem, root = open_storage(raw)
    limit_bytes = MediaConfig().max_size_bytes

    def read(path: str | None) -> bytes | BadValue | None:
        if path is None:
            return None
        try:
            full_path = posixpath.join(root, inside(path))
            info = filesystem.get_file_info(full_path)
            if info.type != pafs.FileType.File:
                return BadValue(modality, f"file {path} does not exist")
            if not 0 < info.size <= limit_bytes:
                return BadValue(modality, f"file {path} has {info.size} bytes, limit {limit_bytes}")
            with filesystem.open_input_file(full_path) as stream:
                return stream.read()
        except (ValueError, OSError) as error:
            return BadValue(modality, f"file {path[:200]} cannot be read ({str(error)[:300]})")

    for item, content in zip(items, readers.map(read, [item[modality] for item in items]), strict=True):
        if isinstance(content, BadValue):
            quarantine.report("items", item[schema.ITEM_ID], modality, str(content))
        item[modality] = content if isinstance(content, bytes) else None
    return sum(item[modality] is not None for item in items)
