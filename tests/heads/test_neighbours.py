"""The content graph by hand, and what it gives items that training never saw."""

import numpy as np
import torch
from torch import nn

from medley.heads.neighbours import NeighbourMean, nearest_items


def test_neighbours_are_the_warm_items_of_the_highest_cosine_best_first():
    degrees = np.array([0.0, 10, 25, 80, 100, 180, 260])
    vectors_ND = {"v": np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1).astype(np.float32)}
    # The mean is taken away first: add the opposite of each so that it is 0.
    vectors_ND = {"v": np.concatenate([vectors_ND["v"], -vectors_ND["v"]])}
    is_warm_N = np.array([True, True, False, True, True, True, True] + [False] * 7)
    index_NK = nearest_items(vectors_ND, {"v": np.ones(14, dtype=bool)}, is_warm_N, 2)
    assert index_NK[:5].tolist() == [[1, 3], [0, 3], [1, 0], [4, 1], [3, 5]]


def test_modalities_add_up_and_a_missing_one_adds_nothing():
    a = np.array([[1, 0], [1, 0], [0, 1], [-1, 0], [-1, -1]], dtype=np.float32)
    b = np.array([[0, 1], [0, -1], [0, 1], [0, -1], [0, 0]], dtype=np.float32)
    masks = {"a": np.ones(5, dtype=bool), "b": np.array([True, True, True, True, False])}
    index_NK = nearest_items({"a": a, "b": b}, masks, np.ones(5, dtype=bool), 4)
    # By b alone 0 goes with 2 and 1 with 3; a makes 1 like 0 and 4 like 3.
    assert index_NK[0].tolist()[0] in (1, 2)
    assert index_NK[4].tolist()[0] == 3
    assert all(item not in index_NK[item].tolist() for item in range(5))


def test_an_item_without_content_has_no_neighbours_and_few_candidates_leave_places_empty():
    vectors_ND = {"v": np.array([[1, 0], [0, 1], [-1, 0], [9, 9]], dtype=np.float32)}
    masks = {"v": np.array([True, True, True, False])}
    index_NK = nearest_items(vectors_ND, masks, np.array([True, False, False, True]), 3)
    assert index_NK.tolist() == [[-1, -1, -1], [0, -1, -1], [0, -1, -1], [-1, -1, -1]]


def test_blocks_of_rows_change_nothing(monkeypatch):
    generator = np.random.default_rng(0)
    vectors_ND = {"v": generator.standard_normal((50, 4)).astype(np.float32)}
    masks, warm = {"v": generator.random(50) < 0.9}, generator.random(50) < 0.7
    whole = nearest_items(vectors_ND, masks, warm, 5)
    monkeypatch.setattr("medley.heads.neighbours.ROWS_PER_BLOCK", 7)
    assert torch.equal(nearest_items(vectors_ND, masks, warm, 5), whole)


def test_the_mean_of_the_neighbours_vectors_by_hand():
    table = nn.Embedding(3, 2)
    with torch.no_grad():
        table.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]))
    module = NeighbourMean(torch.tensor([[1, -1], [0, -1], [0, 1]], dtype=torch.int32))
    assert module(table, torch.tensor([2, 0])).tolist() == [[2.0, 4.0], [3.0, 6.0]]
    assert NeighbourMean(torch.full((3, 2), -1, dtype=torch.int32))(table, torch.tensor([1])).tolist() == [[0.0, 0.0]]


def test_the_graph_is_part_of_a_checkpoint():
    assert list(NeighbourMean(torch.zeros(3, 2, dtype=torch.int32)).state_dict()) == ["index_NK"]
