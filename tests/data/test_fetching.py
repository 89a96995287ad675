"""Blocks through Ray Data come in order, whatever happens to the tasks that make them."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from medley.data.fetching import stream_blocks


def numbers(blocks: Iterator[pa.Table]) -> list[int]:
    return [number for block in blocks for number in block["number"].to_pylist()]


def test_a_task_that_is_slow_or_killed_does_not_change_the_order(ray_session: None, tmp_path: Path):
    killed = str(tmp_path / "killed")

    def fetch(block: pa.Table) -> pa.Table:
        number = block["number"][0].as_py()
        if number == 2:
            time.sleep(0.5)
        if number == 4 and not os.path.exists(killed):
            open(killed, "w").close()
            os._exit(1)
        return block

    blocks = [pa.table({"number": [number, 10 * number]}) for number in range(8)]
    assert numbers(stream_blocks(blocks, fetch, num_tasks=2, num_cpus=0.01)) == [value for number in range(8) for value in (number, 10 * number)]
    assert os.path.exists(killed)


def test_outputs_that_are_split_come_one_by_one_in_order(ray_session: None):
    def rows(block: pa.Table) -> Iterator[pa.Table]:
        for number in block["number"].to_pylist():
            yield pa.table({"number": [number], "content": [b"x" * 1000]})

    found = list(stream_blocks([pa.table({"number": [1, 2, 3]}), pa.table({"number": [4]})], rows, num_tasks=1, num_cpus=0.01, splits_outputs=True))
    assert [block["number"].to_pylist() for block in found] == [[1], [2], [3], [4]]
