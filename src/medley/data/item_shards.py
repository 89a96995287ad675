"""The items' shards and facts, in the order of their numbers."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from medley.data.clean import clean_items
from medley.data.numbering import FILE, ROW, ItemNumbers
from medley.data.partitions import write_buffer
from medley.data.shards import shard_name
from medley.data.steps import Steps
from medley.data.tables import Tables, pieces_of, read_piece
from medley.data.validate import Quarantine
from medley.media import MediaConfig
from medley.schema import ITEM_ID, ITEM_INDEX, TITLE

SHARDS_STEP = "items"


def write_item_shards(steps: Steps, tables: Tables, media: MediaConfig, items: ItemNumbers, size: int) -> tuple[list[str], dict[str, int]]:
    """`items/part-00000.arrow` … of `size` items, one task a shard; returns their names and the coverage: column → items that have it."""
    tasks = [(first, min(first + size, items.num_items)) for first in range(0, items.num_items, size)]
    reports = steps.run(SHARDS_STEP, write_shard, tasks, tables, media, items, inline=False)
    return [shard_name(number) for number in range(len(tasks))], dict(sum((Counter(report["coverage"]) for report in reports), Counter()))


def write_shard(uri: str, first: int, stop: int, tables: Tables, media: MediaConfig, items: ItemNumbers) -> dict[str, Any]:
    """Clean the items first…stop into one shard (a task). An item that stands in no table is a row without content."""
    places = items.rows(first, stop)
    files, rows = places[FILE].to_numpy(), places[ROW].to_numpy()
    # With a base set numbers follow it and not the tables.
    order = np.lexsort((rows, files))
    order = order[files[order] >= 0]
    cleaned = clean_items(tables, media, files[order], rows[order])
    table = cleaned.table
    if not np.array_equal(order, np.arange(len(files))):
        place = np.full(len(files), -1)
        place[order] = np.arange(len(order))
        table = table.take(pa.array(place, mask=place < 0)).set_column(0, table.schema.field(0), places[ITEM_ID])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    quarantine = Quarantine()
    quarantine.report_missing(cleaned.quarantine)
    return {"coverage": cleaned.coverage, **write_buffer(uri, sink.getvalue()), "quarantine": quarantine.as_json()}


def facts_schema(tables: Tables) -> pa.Schema:
    """item_index, item_id, every scalar column that is no modality (title, genre, …), train_count."""
    scalars = [field for field in tables.items_schema if _is_fact(field)]
    if TITLE not in tables.items_schema.names:
        scalars.append(pa.field(TITLE, pa.string()))
    return pa.schema([(ITEM_INDEX, pa.int32()), (ITEM_ID, pa.string()), *scalars, ("train_count", pa.int64())])


def item_facts(tables: Tables, items: ItemNumbers, train_count_N: np.ndarray) -> Iterator[pa.Table]:
    """Tables of facts_schema with all items in their order, each as long as a table of their numbers; an item that stands in no table has no facts."""
    schema = facts_schema(tables)
    for start, stop in zip(items.starts, items.starts[1:], strict=False):
        if start == stop:  # a file of the tables whose items the base has
            continue
        places = items.rows(start, stop)
        columns = {ITEM_INDEX: pa.array(np.arange(start, stop, dtype=np.int32)), ITEM_ID: places[ITEM_ID], "train_count": pa.array(train_count_N[start:stop])}
        facts = _scalars(tables, places, [name for name in schema.names if name not in columns and name in tables.items_schema.names])
        columns |= {name: facts[name] for name in facts.column_names}
        yield pa.table([columns.get(field.name, pa.nulls(stop - start, field.type)) for field in schema], schema)


def _scalars(tables: Tables, places: pa.Table, names: list[str]) -> pa.Table:
    """The named columns of the rows at these places, nulls where an item stands in no table."""
    file, row = places[FILE].to_numpy(), places[ROW].to_numpy()
    schema = pa.schema([tables.items_schema.field(name) for name in names])
    found, slots = [schema.empty_table()], [np.zeros(0, dtype=np.int64)]
    for number in np.unique(file[file >= 0]).tolist() if names else []:
        for group in pieces_of((tables.items[number],), 1):
            own = np.flatnonzero((file == number) & (row >= group.first_row) & (row < group.first_row + group.num_rows))
            if len(own):
                found.append(read_piece(tables.items[number], group, names).take(pa.array(row[own] - group.first_row)))
                slots.append(own)
    order = np.concatenate(slots)
    place = np.full(len(file), -1)
    place[order] = np.arange(len(order))
    return pa.concat_tables(found).take(pa.array(place, mask=place < 0))


def _is_fact(field: pa.Field) -> bool:
    is_scalar = not (pa.types.is_nested(field.type) or pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type))
    return is_scalar and field.name not in (ITEM_ID, "text")
