"""Negatives that the plan draws for a whole global batch: the same in all its micro-batches, only items that training sees, uniform."""

import numpy as np

from medley.data.batches import BatchMaker, PreparedItems
from medley.data.plan import Plan
from medley.data.prepared import PreparedData


def maker(uri: str, num_uniform_negatives: int, *, whole_catalogue: bool = False) -> BatchMaker:
    """Six train rows in micro-batches of one; items 0, 1, 3 and 4 are in train, item 2 is not."""
    plan = Plan(6, micro_batch_size=1, num_micro_batches=2, seed=0)
    return BatchMaker.create(
        PreparedData.open(uri),
        plan,
        history_length=0,
        attribute_columns=[],
        whole_catalogue=whole_catalogue,
        num_uniform_negatives=num_uniform_negatives,
    )


def drawn(made: BatchMaker, epoch: int, global_batch: int, micro_batch: int) -> list[int]:
    """The items that the mask of a micro-batch names."""
    batch = made.batch((epoch, global_batch, micro_batch), PreparedItems({}), {})
    assert batch.uniform_negative_mask_U is not None
    assert batch.item_index_U.tolist() == made.items_of(epoch, global_batch, micro_batch).tolist()
    return batch.item_index_U[batch.uniform_negative_mask_U].tolist()


def test_all_micro_batches_of_a_global_batch_have_the_same_draw_and_others_have_others(hand_prepared: str):
    made = maker(hand_prepared, 2)
    draws = [[drawn(made, epoch, number, micro) for micro in range(2)] for epoch in range(3) for number in range(3)]
    assert all(first == second for first, second in draws)
    assert len({tuple(first) for first, _ in draws}) > 1
    assert draws == [[drawn(maker(hand_prepared, 2), epoch, number, micro) for micro in range(2)] for epoch in range(3) for number in range(3)]


def test_items_that_training_does_not_see_are_never_drawn(hand_prepared: str):
    assert drawn(maker(hand_prepared, 99), 0, 0, 0) == [0, 1, 3, 4]
    assert drawn(maker(hand_prepared, 99, whole_catalogue=True), 0, 0, 0) == [0, 1, 3, 4]


def test_without_uniform_negatives_a_batch_has_no_mask_and_only_its_own_items(hand_prepared: str):
    batch = maker(hand_prepared, 0).batch((0, 0, 0), PreparedItems({}), {})
    assert batch.uniform_negative_mask_U is None
    assert len(batch.item_index_U) == 1


def test_a_draw_has_no_repeats_and_every_candidate_is_as_likely_as_any_other():
    plan = Plan(num_rows=8, micro_batch_size=8, num_micro_batches=1, seed=3)
    draws = [plan.uniform_draw(epoch, 0, num_candidates=10, num_drawn=4) for epoch in range(2000)]
    assert all(len(np.unique(draw)) == 4 for draw in draws)
    counts = np.bincount(np.concatenate(draws), minlength=10)
    # 800 each; the standard deviation is sqrt(2000 × .4 × .6) = 22.
    assert abs(counts - 800).max() < 110
