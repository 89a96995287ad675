"""The stream: batches equal to those made from all items at once, whatever the windows, the position and the ranks."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from medley.data import stream as stream_module
from medley.data.batches import BatchMaker
from medley.data.plan import Plan
from medley.data.prepared import PreparedData
from medley.data.stream import BatchStream, ItemPreparer, StreamConfig, one_ahead
from medley.encoders import Encoder
from medley.encoders.resnet import ResNetConfig
from medley.encoders.subword import SubwordConfig
from medley.schema import Batch

COLUMNS = {"text": "text", "image": "image"}


@pytest.fixture(scope="module")
def data(tiny_prepared: str) -> PreparedData:
    return PreparedData.open(tiny_prepared)


@pytest.fixture(scope="module")
def encoders(data: PreparedData) -> dict[str, Encoder]:
    texts = data.item_store().take(np.arange(data.num_items), ["text"])["text"].to_pylist()
    text = SubwordConfig(vocabulary_size=100, dimension=6)
    return {
        "text": text.build(text.learn(value for value in texts if value is not None), pretrained=False),
        "image": ResNetConfig(side_pixels=16, width=8).build({}, pretrained=False),
    }


def make_stream(data: PreparedData, encoders: dict[str, Encoder], **config: Any) -> BatchStream:
    """Micro-batches of 8 rows, 4 a global batch."""
    maker = BatchMaker.create(data, Plan(len(data.train), 8, 4, seed=1), history_length=3, attribute_columns=[], whole_catalogue=False)
    return BatchStream(maker, encoders, COLUMNS, StreamConfig(**config))


def content(batch: Batch) -> list[Any]:
    """Everything that a model reads of a batch, comparable by ==."""
    inputs = {(name, key): tensor.tolist() for name, tensors in batch.inputs.items() for key, tensor in tensors.items()}
    present = {name: mask.tolist() for name, mask in batch.present_mask_U.items()}
    return [batch.place, batch.user_index_B.tolist(), batch.item_index_U.tolist(), batch.history_position_BL.tolist(), inputs, present]


def batches(stream: BatchStream, start: int, micro_batches: list[int]) -> list[list[Any]]:
    try:
        return [[content(batch) for batch in global_batch] for global_batch in stream.global_batches(1, start, micro_batches)]
    finally:
        stream.close()


@pytest.fixture(scope="module")
def expected(ray_session: None, data: PreparedData, encoders: dict[str, Encoder]) -> list[list[Any]]:
    """Epoch 1, made from all items at once."""
    stream = make_stream(data, encoders)
    everything = stream.preparer.prepare(data.item_store().take(np.arange(data.num_items), ["text", "image"]))
    plan = stream.maker.plan
    stream.close()
    return [[content(stream.maker.batch((1, number, micro), everything, encoders)) for micro in range(4)] for number in range(plan.num_global_batches)]


@pytest.mark.parametrize("config", [{}, {"window_global_batches": 3}, {"max_window_bytes": 1}, {"max_window_bytes": 150_000}])
def test_batches_do_not_depend_on_how_windows_are_cut(data: PreparedData, encoders: dict[str, Encoder], expected: list[list[Any]], config: dict[str, int]):
    assert batches(make_stream(data, encoders, **config), 0, [0, 1, 2, 3]) == expected


def test_a_resume_at_any_position_gives_the_same_batches(data: PreparedData, encoders: dict[str, Encoder], expected: list[list[Any]]):
    for start in (1, 7, len(expected) - 1, len(expected)):
        assert batches(make_stream(data, encoders, max_window_bytes=150_000), start, [0, 1, 2, 3]) == expected[start:]


def test_ranks_get_their_own_micro_batches(data: PreparedData, encoders: dict[str, Encoder], expected: list[list[Any]]):
    assert batches(make_stream(data, encoders), 10, [1, 3]) == [[global_batch[1], global_batch[3]] for global_batch in expected[10:]]


def test_an_epoch_of_several_data_sets_is_the_same(
    data: PreparedData, encoders: dict[str, Encoder], expected: list[list[Any]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stream_module, "WINDOWS_PER_DATASET", 2)
    assert batches(make_stream(data, encoders, window_global_batches=4), 0, [0, 1, 2, 3]) == expected


def test_a_windows_items_stay_within_the_stated_bytes(data: PreparedData, encoders: dict[str, Encoder]):
    files = [entry["size_bytes"] for name, entry in data.manifest["files"].items() if name.startswith("items/")]
    # An item: its share of the shards, one token of 8 bytes, 16 × 16 × 3 pixels, and what the objects take.
    item_bytes = sum(files) / data.num_items + 8 + 768 + stream_module.ITEM_OVERHEAD_BYTES
    for budget, items in ((50.5 * item_bytes, 50), (1.0, 1)):
        stream = make_stream(data, encoders, max_window_bytes=int(budget))
        assert stream.max_window_items == items
        stream.close()
    cut = [len(items) for _, _, items in stream.maker.windows(0, 0, [0, 1, 2, 3], max_global_batches=99, max_items=90)]
    assert len(cut) > 1
    assert max(cut) <= 90


def test_a_model_without_encoders_needs_no_items(data: PreparedData):
    found = batches(make_stream(data, {}, window_global_batches=5), 3, [0])
    assert [batch[0] for (batch,) in found] == [(1, number, 0) for number in range(3, len(found) + 3)]
    assert all(batch[-2:] == [{}, {}] for (batch,) in found)


def test_a_missing_value_leaves_the_other_modalities_of_its_item(encoders: dict[str, Encoder]):
    rows = pa.table({"item_index": pa.array([4, 2, 9], pa.int32()), "text": ["a b", None, None], "image": pa.array([None] * 3, pa.large_binary())})
    with ThreadPoolExecutor(2) as threads:
        prepared = ItemPreparer(encoders, COLUMNS, threads).prepare(rows)
    assert {item: list(inputs) for item, inputs in prepared.items()} == {4: ["text"], 2: [], 9: []}
    assert torch.equal(prepared[4]["text"]["token_ids"], encoders["text"].prepare("a b")["token_ids"])


def test_values_made_ahead_come_in_order_and_their_error_reaches_who_reads_them():
    def numbers() -> Iterator[int]:
        yield from (1, 2, 3)
        raise OSError("no more")

    with ThreadPoolExecutor(1) as thread:
        found = []
        with pytest.raises(OSError, match="no more"):
            found.extend(one_ahead(numbers(), thread))
    assert list(one_ahead(iter([]), ThreadPoolExecutor(1))) == []
