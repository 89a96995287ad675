"""The stream: batches equal to those made from all items at once, whatever the windows, the position and the ranks."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from medley.data import fetching
from medley.data.batches import BatchMaker
from medley.data.fetching import FetchedItems
from medley.data.plan import Plan
from medley.data.prepared import PreparedData
from medley.data.preparing import ItemPreparer, in_order_of_use
from medley.data.stream import ITEM_OVERHEAD_BYTES, BatchStream, StreamConfig, one_ahead
from medley.encoders import Encoder, stack_inputs
from medley.encoders.resnet import ResNetConfig
from medley.encoders.subword import SubwordConfig
from medley.media import encode_jpeg
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
    everything = stream.preparer.prepare(np.arange(data.num_items), stream.store)
    plan = stream.maker.plan
    stream.close()
    return [[content(stream.maker.batch((1, number, micro), everything, encoders)) for micro in range(4)] for number in range(plan.num_global_batches)]


FETCHED: dict[str, Any] = {"max_mapped_bytes": 0}
DECODED: dict[str, Any] = {"decode": "cluster"}
CONFIGS: list[dict[str, Any]] = [{}, {"window_global_batches": 3}, {"max_window_bytes": 1}, {"max_window_bytes": 150_000}]


@pytest.mark.parametrize("config", [*CONFIGS, *(config | where for config in CONFIGS[1::2] for where in (FETCHED, DECODED))])
def test_batches_do_not_depend_on_how_windows_are_cut_or_on_who_reads_and_who_decodes(
    data: PreparedData, encoders: dict[str, Encoder], expected: list[list[Any]], config: dict[str, int]
):
    assert batches(make_stream(data, encoders, **config), 0, [0, 1, 2, 3]) == expected


def test_a_resume_at_any_position_gives_the_same_batches(data: PreparedData, encoders: dict[str, Encoder], expected: list[list[Any]]):
    for start, config in ((1, {}), (7, FETCHED), (9, DECODED), (len(expected) - 1, {}), (len(expected), FETCHED)):
        assert batches(make_stream(data, encoders, max_window_bytes=150_000, **config), start, [0, 1, 2, 3]) == expected[start:]


def test_ranks_get_their_own_micro_batches(data: PreparedData, encoders: dict[str, Encoder], expected: list[list[Any]]):
    assert batches(make_stream(data, encoders), 10, [1, 3]) == [[global_batch[1], global_batch[3]] for global_batch in expected[10:]]


@pytest.mark.parametrize("draw", range(3))
def test_after_20_kills_anywhere_and_resumes_at_other_world_sizes_every_batch_came_once(
    data: PreparedData, encoders: dict[str, Encoder], expected: list[list[Any]], draw: int
):
    random = np.random.default_rng(draw)
    stops, found = sorted(random.integers(0, len(expected) + 1, 20).tolist()), dict[tuple[int, int], Any]()
    for start, stop in itertools.pairwise([0, *stops, len(expected)]):
        world_size = int(random.choice([1, 2, 4]))
        for rank in range(world_size if start < stop else 0):
            micro_batches = list(range(rank, 4, world_size))
            stream = make_stream(data, encoders, max_window_bytes=150_000)
            # The kill comes while later windows and batches are being made.
            for number, batches in zip(range(start, stop), stream.global_batches(1, start, micro_batches), strict=False):
                for micro, batch in zip(micro_batches, batches, strict=True):
                    assert (number, micro) not in found
                    found[number, micro] = content(batch)
            stream.close()
    assert found == {(number, micro): batch for number, global_batch in enumerate(expected) for micro, batch in enumerate(global_batch)}


def test_an_epoch_of_several_data_sets_is_the_same(
    data: PreparedData, encoders: dict[str, Encoder], expected: list[list[Any]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fetching, "WINDOWS_PER_DATASET", 2)
    assert batches(make_stream(data, encoders, window_global_batches=4, **FETCHED), 0, [0, 1, 2, 3]) == expected


def test_a_windows_items_stay_within_the_stated_bytes(data: PreparedData, encoders: dict[str, Encoder]):
    files = [entry["size_bytes"] for name, entry in data.manifest["files"].items() if name.startswith("items/")]
    # An item: its share of the shards, one token of 8 bytes, 16 × 16 × 3 pixels, and what the objects take.
    item_bytes = sum(files) / data.num_items + 8 + 768 + ITEM_OVERHEAD_BYTES
    for budget, items in ((50.5 * item_bytes, 50), (1.0, 1)):
        stream = make_stream(data, encoders, max_window_bytes=int(budget))
        assert stream.max_window_items == items
        stream.close()
    cut = [len(in_order_of_use(parts)) for _, _, parts in stream.maker.windows(0, 0, [0, 1, 2, 3], max_global_batches=99, max_items=90)]
    assert len(cut) > 1
    assert max(cut) <= 90


def test_a_model_without_encoders_needs_no_items(data: PreparedData):
    found = batches(make_stream(data, {}, window_global_batches=5), 3, [0])
    assert [batch[0] for (batch,) in found] == [(1, number, 0) for number in range(3, len(found) + 3)]
    assert all(batch[-2:] == [{}, {}] for (batch,) in found)


def test_a_missing_value_leaves_the_other_modalities_of_its_item(encoders: dict[str, Encoder]):
    black, white = (encode_jpeg(np.full((3, 16, 16), shade, dtype=np.uint8), 90) for shade in (0, 255))
    rows = {
        "item_index": pa.array([4, 2, 9, 5], pa.int32()),
        "text": ["a b", None, None, None],
        "image": pa.array([None, black, None, white], pa.large_binary()),
    }
    with ThreadPoolExecutor(2) as threads:
        prepared = ItemPreparer(encoders, COLUMNS, threads).prepare(np.array([9, 4, 5, 2]), FetchedItems(pa.table(rows)))
    inputs, present = prepared.stack(np.array([2, 4, 5, 9]), encoders)
    assert {name: mask.tolist() for name, mask in present.items()} == {"text": [False, True, False, False], "image": [True, False, True, False]}
    assert torch.equal(inputs["text"]["token_ids"], stack_inputs([encoders["text"].prepare("a b")])["token_ids"])
    assert inputs["image"]["pixels"].float().mean(dim=(1, 2, 3)).tolist() == [0.0, 255.0]
    inputs, present = prepared.stack(np.array([4, 9]), encoders)
    assert inputs["image"]["pixels"].tolist() == [encoders["image"].dummy()["pixels"].tolist()]


def test_values_made_ahead_come_in_order_and_their_error_reaches_who_reads_them():
    def numbers() -> Iterator[int]:
        yield from (1, 2, 3)
        raise OSError("no more")

    with ThreadPoolExecutor(1) as thread:
        found = []
        with pytest.raises(OSError, match="no more"):
            found.extend(one_ahead(numbers(), thread))
    assert list(one_ahead(iter([]), ThreadPoolExecutor(1))) == []
