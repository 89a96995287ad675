"""Tables of the scale bench: a log in time order, skewed towards few users and items, with one repeat in a hundred rows."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

USERS_PER_ROW = 1 / 10
VECTOR_SIZE = 16
ROWS_PER_FILE, ROWS_PER_GROUP = 2**19, 2**17
MEAN_STEP_MICROSECONDS = 1_000_000


def write_tables(folder: Path, num_rows: int, num_items: int) -> None:
    """items/ (item_id, text, title, vector) and interactions/ (user_id, item_id, timestamp, value) of num_rows rows."""
    num_users = round(num_rows * USERS_PER_ROW)
    random = np.random.default_rng(0)
    item_ids = pa.array([f"item-{number:07d}" for number in range(num_items)])
    user_ids = pa.array([f"user-{number:09d}" for number in range(num_users)])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(random.normal(size=num_items * VECTOR_SIZE).astype(np.float32)), VECTOR_SIZE)
    texts = pa.array([f"what is said of item {number}" for number in range(num_items)])
    _write(folder / "items" / "part-00000.parquet", pa.table({"item_id": item_ids, "text": texts, "title": item_ids, "vector": vectors}))
    moment = 1_600_000_000_000_000
    for number, first in enumerate(range(0, num_rows, ROWS_PER_FILE)):
        size = min(ROWS_PER_FILE, num_rows - first)
        users, items = ((count * random.random(size) ** 1.5).astype(np.int64) for count in (num_users, num_items))
        times = moment + np.cumsum(random.integers(0, 2 * MEAN_STEP_MICROSECONDS, size))
        values, moment = random.integers(1, 6, size).astype(np.float32), int(times[-1])
        repeats = 1 + np.flatnonzero(random.random(size - 1) < 0.01)
        for column in (users, items, times, values):
            column[repeats] = column[repeats - 1]
        columns = {"user_id": user_ids.take(pa.array(users)), "item_id": item_ids.take(pa.array(items))}
        columns |= {"timestamp": pa.array(times, pa.timestamp("us", tz="UTC")), "value": pa.array(values)}
        _write(folder / "interactions" / f"part-{number:05d}.parquet", pa.table(columns))


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=ROWS_PER_GROUP, write_page_checksum=True)
