"""A bit that flips in a finished folder is never silent: whoever reads the file refuses it by name."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medley.data.prepared import PreparedData
from medley.data.tables import open_tables
from medley.manifest import MANIFEST, read_manifest, verify_files
from medley.schema import SPLITS, InputError

NUM_FLIPS = 1000


def read_shard(uri: str, name: str) -> None:
    """The first item of one shard, as the stream reads it."""
    data = PreparedData.open(uri)
    first = int(name.removeprefix("items/part-").removesuffix(".arrow")) * data.item_shards.items_per_shard
    data.item_store().take(np.array([first]), ["image"])


def readers(tables: str, prepared: str) -> dict[Path, tuple[str, Callable[[], object]]]:
    """Every file of a tables folder and its prepared set → what it is, and how the library reads it."""
    found: dict[Path, tuple[str, Callable[[], object]]] = {}
    for name in [*read_manifest(tables, "tables")["files"], MANIFEST]:
        found[Path(tables, name)] = ("manifest" if name == MANIFEST else "table", lambda: open_tables(tables))
    manifest = read_manifest(prepared, "prepared")
    found[Path(prepared, MANIFEST)] = ("manifest", lambda: PreparedData.open(prepared))
    for name in manifest["files"]:
        kind, read = "record", lambda: verify_files(prepared, manifest)
        if name.startswith("items/"):
            kind, read = "prepared media", lambda name=name: read_shard(prepared, name)
        elif name in ("users.parquet", "item_facts.parquet"):
            kind, read = "id map", lambda name=name: getattr(PreparedData.open(prepared), name.removesuffix(".parquet"))
        elif name.split("/")[0] in SPLITS:
            kind, read = "interactions", lambda name=name: PreparedData.open(prepared).interactions(name.split("/")[0])
        found[Path(prepared, name)] = (kind, read)
    return found


def test_of_a_thousand_flipped_bits_none_is_silent(tiny_tables: str, tiny_prepared: str):
    random = np.random.default_rng(0)
    files = readers(tiny_tables, tiny_prepared)
    for _, read in files.values():
        read()
    kinds: Counter[str] = Counter()
    paths = sorted(files)
    for number in range(NUM_FLIPS):
        path = paths[random.integers(len(paths))]
        kind, read = files[path]
        content = bytearray(path.read_bytes())
        place, bit = random.integers(len(content)), random.integers(8)
        kinds[kind] += 1
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes([content[place] ^ (1 << bit)]))
        try:
            with pytest.raises(InputError) as caught:
                read()
            assert path.name in str(caught.value), f"flip {number}: bit {bit} of byte {place} in '{path}': {caught.value}"
        finally:
            path.write_bytes(content)
    for _, read in files.values():
        read()
    assert set(kinds) == {"manifest", "table", "prepared media", "id map", "interactions", "record"}
    assert min(kinds.values()) >= 30, kinds
