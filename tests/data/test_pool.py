"""The pool of negatives by hand: who sends what, where it stands, which item is taken from whom."""

import numpy as np

from medley.data.pool import make_pool


def test_an_item_that_two_ranks_send_is_taken_from_the_first():
    # Rank 1 encodes items 2, 3, 5, 9 (2 for a history) and has rows of 5, 9, 3; user of row 0 has 4 and 7, of row 2 has 5 in train.
    drawn = [np.array([3, 4]), np.array([3, 5, 9])]
    pool = make_pool(drawn, 1, np.array([5, 9, 3]), np.array([2, 3, 5, 9]), np.array([0, 0, 2]), np.array([4, 7, 5]))
    assert pool.num_ranks == 2
    assert pool.item_index_W.tolist() == [3, 4, 5, 9]
    assert pool.sent_position_S.tolist() == [1, 2, 3]
    assert pool.received_position_W.tolist() == [0, 1, 4, 5]  # rank 0 sends 3, 4 and a filler
    assert pool.item_position_B.tolist() == [2, 3, 0]
    assert pool.known_positive_mask_BW.tolist() == [[False, True, False, False], [False] * 4, [False, False, True, False]]


def test_a_rank_without_rows_sends_a_filler_that_is_no_negative():
    drawn = [np.array([3, 4]), np.zeros(0, dtype=np.int32)]
    pool = make_pool(drawn, 1, np.array([0]), np.array([0]), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    assert pool.item_index_W.tolist() == [3, 4]
    assert pool.sent_position_S.tolist() == [0, 0]
    assert pool.received_position_W.tolist() == [0, 1]
    assert pool.item_position_B.tolist() == [0]


def test_without_rows_on_any_rank_there_is_still_an_item():
    nothing = np.zeros(0, dtype=np.int32)
    pool = make_pool([nothing, nothing], 0, np.array([0]), np.array([0]), nothing, nothing)
    assert (pool.item_index_W.tolist(), pool.received_position_W.tolist(), pool.item_position_B.tolist()) == ([0], [0], [0])
