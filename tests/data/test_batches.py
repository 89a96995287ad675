"""Micro-batches by hand, on the six train rows of `hand_prepared`."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from medley.data.base import PREPARED_KIND
from medley.data.batches import BatchMaker, PreparedItems, pad_histories
from medley.data.plan import Plan
from medley.data.prepared import PreparedData
from medley.encoders import Encoder
from medley.encoders.features import FeaturesEncoder
from medley.encoders.resnet import ResNetConfig
from medley.encoders.tags import TagsEncoder
from medley.manifest import write_manifest
from medley.schema import Batch

ENCODERS: dict[str, Encoder] = {
    "vector": FeaturesEncoder([0.0, 0.0], [1.0, 1.0], normalise=False),
    "tags": TagsEncoder(["x", "y"], dimension=2),
}
PREPARED = PreparedItems(
    {
        0: {"vector": ENCODERS["vector"].prepare([0.0, 0.5]), "tags": ENCODERS["tags"].prepare(["x"])},
        1: {"vector": ENCODERS["vector"].prepare([1.0, 1.5])},
        2: {"tags": ENCODERS["tags"].prepare(["y", "x"])},
        3: {"vector": ENCODERS["vector"].prepare([3.0, 3.5]), "tags": ENCODERS["tags"].prepare(["x", "y"])},
        4: {},
    }
)


@pytest.fixture(scope="module")
def data(hand_prepared: str) -> PreparedData:
    return PreparedData.open(hand_prepared)


class RowsAsTheyCome(Plan):
    """A plan whose order is that of the rows, so that micro-batches are known by heart."""

    def rows(self, epoch: int, global_batch: int, micro_batch: int) -> np.ndarray:
        start = global_batch * self.global_batch_size
        return np.array_split(np.arange(start, start + self.num_rows_in(global_batch)), self.num_micro_batches)[micro_batch]


def maker(data: PreparedData, micro_batch_size: int = 2, num_micro_batches: int = 2, history_length: int = 0, whole_catalogue: bool = False) -> BatchMaker:
    plan = RowsAsTheyCome(6, micro_batch_size, num_micro_batches, seed=0)
    return BatchMaker.create(data, plan, history_length=history_length, attribute_columns=["country"], whole_catalogue=whole_catalogue)


def histories(batch: Batch) -> list[list[int]]:
    """Items of each row's history."""
    return [batch.item_index_U[positions[mask]].tolist() for positions, mask in zip(batch.history_position_BL, batch.history_mask_BL, strict=True)]


def test_rows_stand_in_the_order_of_the_plan_and_items_once(data: PreparedData):
    batch = maker(data, micro_batch_size=3).batch((0, 0, 1), PREPARED, ENCODERS)  # rows 3, 4, 5
    assert batch.place == (0, 0, 1)
    assert batch.user_index_B.tolist() == [2, 0, 1]
    assert batch.item_index_U.tolist() == [3, 4]
    assert batch.item_position_B.tolist() == [0, 1, 1]
    assert batch.row_weight_B.tolist() == [1.0, 2.0, 1.0]
    assert batch.value_B.nan_to_num(-1).tolist() == [1.5, -1, 1.5]


def test_known_positives_are_the_users_train_items_among_those_here(data: PreparedData):
    batch = maker(data).batch((0, 0, 1), PREPARED, ENCODERS)  # rows 2 (0, 3) and 3 (2, 3)
    assert batch.item_index_U.tolist() == [3]
    assert batch.known_positive_mask_BU.tolist() == [[True], [True]]
    whole = maker(data, whole_catalogue=True).batch((0, 0, 0), PREPARED, ENCODERS)  # rows 0 (0, 1) and 1 (1, 0)
    assert whole.item_index_U.tolist() == [0, 1, 2, 3, 4]
    assert whole.known_positive_mask_BU.int().tolist() == [[0, 1, 0, 1, 1], [1, 0, 0, 0, 1]]
    assert whole.item_position_B.tolist() == [1, 0]


def test_inputs_are_stacked_over_the_items_that_have_them(data: PreparedData):
    batch = maker(data, whole_catalogue=True).batch((0, 0, 0), PREPARED, ENCODERS)
    assert {name: mask.tolist() for name, mask in batch.present_mask_U.items()} == {
        "vector": [True, True, False, True, False],
        "tags": [True, False, True, True, False],
    }
    assert batch.inputs["vector"]["features"].tolist() == [[0.0, 0.5], [1.0, 1.5], [3.0, 3.5]]
    assert batch.inputs["tags"]["tag_ids"].tolist() == [[1, 0], [2, 1], [1, 2]]


def test_a_modality_that_no_item_has_gets_one_dummy_row():
    inputs, present = PREPARED.stack(np.array([4, 77]), ENCODERS)  # item 77 is not here: it has no modality
    assert inputs["vector"]["features"].tolist() == [[0.0, 0.0]]
    assert inputs["tags"]["tag_ids"].tolist() == [[0]]
    assert present["tags"].tolist() == [False, False]


def test_histories_are_the_past_and_their_items_are_here_too(data: PreparedData):
    batch = maker(data, micro_batch_size=3, history_length=5).batch((0, 0, 1), PREPARED, ENCODERS)  # rows 3 (2, 3), 4 (0, 4), 5 (1, 4)
    assert histories(batch) == [[], [1, 3], [0]]
    assert batch.item_index_U.tolist() == [0, 1, 3, 4]
    assert batch.item_position_B.tolist() == [2, 3, 3]
    assert batch.history_position_BL.shape == (3, 2)
    assert batch.known_positive_mask_BU.int().tolist() == [[0, 0, 1, 0], [0, 1, 1, 1], [1, 0, 0, 1]]


def test_without_histories_there_is_one_masked_place(data: PreparedData):
    batch = maker(data).batch((0, 0, 0), PREPARED, ENCODERS)
    assert (batch.history_position_BL.tolist(), batch.history_mask_BL.tolist()) == ([[0], [0]], [[False], [False]])


def test_histories_are_padded_at_the_end():
    positions_BL, mask_BL = pad_histories([np.array([7]), np.array([9, 5])], np.array([5, 7, 9]), 3)
    assert positions_BL.tolist() == [[1, 0], [2, 0], [0, 0]]
    assert mask_BL.tolist() == [[True, False], [True, True], [False, False]]


def test_a_partial_micro_batch_holds_what_is_left(data: PreparedData):
    batch = maker(data, micro_batch_size=4, num_micro_batches=4).batch((0, 0, 2), PREPARED, ENCODERS)  # six rows in four parts: 2, 2, 1, 1
    assert (batch.user_index_B.tolist(), batch.item_index_U.tolist()) == ([0], [4])


@pytest.mark.parametrize("history_length", [0, 3])
def test_an_empty_micro_batch_is_one_row_that_weighs_nothing(data: PreparedData, history_length: int):
    batch = maker(data, micro_batch_size=1, num_micro_batches=8, history_length=history_length).batch((0, 0, 7), PREPARED, ENCODERS)
    assert (batch.user_index_B.tolist(), batch.item_index_U.tolist(), batch.row_weight_B.tolist()) == ([0], [0], [0.0])
    assert batch.item_position_B.tolist() == [0]
    assert not batch.history_mask_BL.any()
    assert batch.inputs["vector"]["features"].tolist() == [[0.0, 0.5]]


def test_attributes_are_categories_from_one_with_zero_for_unknown(data: PreparedData):
    batch = maker(data, micro_batch_size=3).batch((0, 0, 1), PREPARED, ENCODERS)  # users 2, 0, 1: DE, SE, unknown
    assert batch.attributes_B["country"].tolist() == [1, 2, 0]


def windows(made: BatchMaker, start: int, micro_batches: list[int], max_global_batches: int = 9, max_items: int = 99) -> list[tuple[int, int, list[list[int]]]]:
    found = made.windows(0, start, micro_batches, max_global_batches, max_items)
    return [(first, stop, [items.tolist() for items in parts]) for first, stop, parts in found]


def test_the_number_of_files_of_the_train_rows_does_not_change_a_batch(hand_prepared: str, tmp_path: Path):
    shutil.copytree(hand_prepared, tmp_path / "split")
    (file,) = (tmp_path / "split" / "train").iterdir()
    rows = pq.read_table(file)
    for number, (start, stop) in enumerate([(0, 1), (1, 4), (4, 6)]):
        pq.write_table(rows.slice(start, stop - start), file.with_name(f"part-{number:05d}.parquet"))
    (tmp_path / "split" / "manifest.json").unlink()
    whole = PreparedData.open(hand_prepared)
    write_manifest(str(tmp_path / "split"), PREPARED_KIND, "f", parents={}, counts=whole.manifest["counts"], config={})
    plan = Plan(6, 2, 1, seed=3)
    one, three = (
        BatchMaker.create(data, plan, history_length=2, attribute_columns=[], whole_catalogue=False)
        for data in (whole, PreparedData.open(str(tmp_path / "split")))
    )
    for number in range(plan.num_global_batches):
        left, right = (made.batch((0, number, 0), PREPARED, ENCODERS) for made in (one, three))
        assert left.user_index_B.tolist() == right.user_index_B.tolist()
        assert left.item_index_U.tolist() == right.item_index_U.tolist()
        assert histories(left) == histories(right)


def test_items_of_a_micro_batch_are_those_of_its_rows_and_histories(data: PreparedData):
    made = maker(data, micro_batch_size=1)  # three global batches of two micro-batches: rows 0 1, 2 3, 4 5
    assert [made.items_of(0, number, micro).tolist() for number in range(3) for micro in range(2)] == [[1], [0], [3], [3], [4], [4]]
    assert maker(data, micro_batch_size=1, history_length=5).items_of(0, 2, 0).tolist() == [1, 3, 4]
    assert maker(data, whole_catalogue=True).items_of(0, 0, 0).tolist() == [0, 1, 2, 3, 4]


def test_a_window_has_the_items_of_each_of_its_micro_batches(data: PreparedData):
    made = maker(data, micro_batch_size=1)
    assert windows(made, 0, [0]) == [(0, 3, [[1], [3], [4]])]
    assert windows(made, 0, [0, 1], max_global_batches=2) == [(0, 2, [[1], [0], [3], [3]]), (2, 3, [[4], [4]])]
    assert windows(made, 2, [0, 1]) == [(2, 3, [[4], [4]])]
    assert windows(made, 3, [0, 1]) == []


def test_a_window_ends_before_its_items_are_too_many_and_holds_one_global_batch_at_least(data: PreparedData):
    made = maker(data, micro_batch_size=1)
    assert windows(made, 0, [0, 1], max_items=3) == [(0, 2, [[1], [0], [3], [3]]), (2, 3, [[4], [4]])]
    assert windows(made, 0, [0, 1], max_items=2) == [(0, 1, [[1], [0]]), (1, 3, [[3], [3], [4], [4]])]
    assert [window[:2] for window in windows(made, 0, [0, 1], max_items=1)] == [(0, 1), (1, 2), (2, 3)]


def test_the_whole_catalogue_is_fetched_once_a_window_however_large(data: PreparedData):
    made = maker(data, micro_batch_size=1, whole_catalogue=True)
    assert windows(made, 0, [0], max_items=1) == [(0, 3, [[0, 1, 2, 3, 4]] * 3)]
    assert [window[:2] for window in windows(made, 0, [0], max_global_batches=2)] == [(0, 2), (2, 3)]


def test_every_item_that_a_batch_names_is_in_its_window(data: PreparedData):
    made = maker(data, micro_batch_size=1, history_length=2)
    for number in range(3):
        for micro in range(2):
            batch = made.batch((0, number, micro), PREPARED, ENCODERS)
            assert batch.item_index_U.tolist() == made.items_of(0, number, micro).tolist()


def test_pictures_are_stacked_whatever_their_layout_in_memory():
    encoder = ResNetConfig(side_pixels=16, width=8).build({}, pretrained=False)
    pixels_HWC = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8)
    channels_last, channels_first = pixels_HWC.permute(2, 0, 1), (255 - pixels_HWC).permute(2, 0, 1).contiguous()
    items = PreparedItems({0: {"image": {"pixels": channels_last}}, 1: {"image": {"pixels": channels_last}}, 2: {"image": {"pixels": channels_first}}})
    for indices, expected, keeps_layout in (([0, 1], [channels_last, channels_last], True), ([1, 2], [channels_last, channels_first], False)):
        stacked, present = items.stack(np.array(indices), {"image": encoder})
        pixels = stacked["image"]["pixels"]
        assert torch.equal(pixels, torch.stack(expected))
        assert pixels.is_contiguous(memory_format=torch.channels_last) == keeps_layout
        assert present["image"].tolist() == [True, True]


def test_a_user_batch_has_the_histories_at_the_end_of_training(data: PreparedData):
    batch = maker(data, history_length=2).user_batch(np.array([2, 0]), PREPARED, ENCODERS)
    assert histories(batch) == [[3], [3, 4]]
    assert batch.user_index_B.tolist() == [2, 0]
    assert batch.row_weight_B.tolist() == [0.0, 0.0]
    assert batch.item_index_U.tolist() == [0, 3, 4]
    assert not batch.known_positive_mask_BU.any()
    assert batch.attributes_B["country"].tolist() == [1, 2]


def test_a_batch_moves_with_everything_in_it(data: PreparedData):
    moved = maker(data).batch((0, 0, 0), PREPARED, ENCODERS).to(torch.device("meta"))
    assert moved.place == (0, 0, 0)
    assert {moved.user_index_B.device.type, moved.inputs["vector"]["features"].device.type, moved.attributes_B["country"].device.type} == {"meta"}


def test_prepared_data_are_read_as_they_were_written(data: PreparedData):
    assert (data.num_items, data.num_users, data.columns, data.identity) == (5, 3, ["title"], "feedc0ffee123456")
    assert data.train.timestamps.tolist() == [0, 1, 2, 3, 4, 5]
    assert np.isnan(data.train.values).tolist() == [False, False, False, False, True, False]
    assert data.train_count_N.tolist() == [1, 1, 0, 2, 2]
    assert [data.train_lists.of(user).tolist() for user in range(3)] == [[1, 3, 4], [0, 4], [3]]
    assert [data.item_lists("train", "valid", "test").of(user).tolist() for user in range(3)] == [[1, 2, 3, 4], [0, 1, 4], [2, 3]]


def test_targets_are_what_a_user_did_not_have_in_train(data: PreparedData):
    targets = data.targets("valid")
    assert [targets.of(user).tolist() for user in range(3)] == [[2], [1], []]
