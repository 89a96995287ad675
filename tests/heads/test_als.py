"""One half of an alternation against numpy, block solves against exact ones, rows shared out."""

import numpy as np
import pytest
import torch

from medley.heads.als import Half, solve_half
from medley.heads.sparse import SparseRows

RANDOM = np.random.default_rng(0)
NUM_ROWS, NUM_COLUMNS, DIMENSION = 30, 20, 6
OBSERVED = RANDOM.random((NUM_ROWS, NUM_COLUMNS)) < RANDOM.random((NUM_ROWS, 1))
WEIGHTS = (RANDOM.random(OBSERVED.shape) + 0.5).astype(np.float32) * OBSERVED
FIXED = RANDOM.normal(size=(NUM_COLUMNS, DIMENSION)).astype(np.float32)
ROWS = SparseRows.from_pairs(*np.nonzero(OBSERVED), WEIGHTS[OBSERVED], NUM_ROWS, NUM_COLUMNS)
RIDGE = torch.from_numpy(RANDOM.random(NUM_ROWS).astype(np.float32) + 0.1)
START = torch.from_numpy(RANDOM.normal(size=(NUM_ROWS, DIMENSION)).astype(np.float32))
GRAM = torch.from_numpy(0.3 * FIXED.T @ FIXED)


def exact(targets: np.ndarray, prior: np.ndarray) -> np.ndarray:
    rows = []
    for weights, target, ridge, pull in zip(WEIGHTS, targets, RIDGE.numpy(), prior, strict=True):
        normal = (FIXED * weights[:, None]).T @ FIXED + GRAM.numpy() + ridge * np.eye(DIMENSION)
        rows.append(np.linalg.solve(normal, FIXED.T @ (weights * target) + ridge * pull))
    return np.array(rows)


def test_one_block_is_the_solution_of_hu_koren_and_volinsky_wherever_it_starts():
    found, loss = solve_half(Half(ROWS, None, RIDGE), START, torch.from_numpy(FIXED), GRAM, DIMENSION)
    expected = exact(np.ones_like(WEIGHTS), np.zeros((NUM_ROWS, DIMENSION)))
    assert found.numpy() == pytest.approx(expected, abs=1e-4)
    assert loss == pytest.approx((WEIGHTS * (1 - expected @ FIXED.T) ** 2).sum(), rel=1e-4)


def test_targets_and_a_prior_enter_the_solution():
    targets = RANDOM.normal(size=WEIGHTS.shape).astype(np.float32)
    prior = RANDOM.normal(size=(NUM_ROWS, DIMENSION)).astype(np.float32)
    half = Half(ROWS, torch.from_numpy(targets[OBSERVED]), RIDGE)
    found, _ = solve_half(half, START, torch.from_numpy(FIXED), GRAM, DIMENSION, torch.from_numpy(prior))
    assert found.numpy() == pytest.approx(exact(targets, prior), abs=1e-4)


def test_passes_over_blocks_come_to_the_same_solution():
    vectors_BD = START
    for _ in range(60):
        vectors_BD, _ = solve_half(Half(ROWS, None, RIDGE), vectors_BD, torch.from_numpy(FIXED), GRAM, 2)
    assert vectors_BD.numpy() == pytest.approx(exact(np.ones_like(WEIGHTS), np.zeros((NUM_ROWS, DIMENSION))), abs=1e-3)


def test_rows_may_be_shared_out():
    half, fixed_ND = Half(ROWS, None, RIDGE), torch.from_numpy(FIXED)
    whole, loss = solve_half(half, START, fixed_ND, GRAM, 4)
    parts = [solve_half(half.part(first, last), START[first:last], fixed_ND, GRAM, 4) for first, last in ((0, 7), (7, 30))]
    assert torch.cat([vectors for vectors, _ in parts]).numpy() == pytest.approx(whole.numpy(), abs=1e-5)
    assert sum(part_loss for _, part_loss in parts) == pytest.approx(loss, rel=1e-5)


def test_a_row_without_entries_goes_to_its_prior():
    empty = SparseRows.from_pairs(np.zeros(0, int), np.zeros(0, int), np.zeros(0), 1, NUM_COLUMNS)
    prior_BD = torch.ones(1, DIMENSION)
    found, loss = solve_half(Half(empty, None, torch.ones(1)), START[:1], torch.from_numpy(FIXED), torch.zeros(DIMENSION, DIMENSION), DIMENSION, prior_BD)
    assert (found[0].tolist(), loss) == (pytest.approx([1.0] * DIMENSION, abs=1e-6), 0.0)
