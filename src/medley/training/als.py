"""From a prepared set to an ALS scorer: sweeps over users and items, in this process or shared out over Ray actors."""

import itertools
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from medley.data.plan import derive_seed
from medley.data.prepared import PreparedData
from medley.heads.als import AlsConfig, Half, solve_half
from medley.heads.sparse import SparseRows
from medley.index.scorer import Scorer
from medley.schema import InputError
from medley.training.content import check_content, content_gram
from medley.training.ease import check_memory
from medley.training.evaluate import EvaluateConfig
from medley.training.validation import validate_scorer

logger = logging.getLogger(__name__)

GROWTH_ALLOWED = 1e-3
"""Share by which rounding, or the ridge regression on content, may raise the loss of an epoch."""


@dataclass(frozen=True)
class Problem:
    """Both sides of a factorisation. halves: users, items. side_weights: what each row of a side counts in the other's sums."""

    halves: tuple[Half, Half]
    side_weights: tuple[Tensor, Tensor]
    user_bias_V: Tensor
    item_bias_N: Tensor
    global_bias: float


def train_als(config: AlsConfig, data: PreparedData, evaluate: EvaluateConfig, seed: int) -> tuple[Scorer, list[dict[str, Any]]]:
    """The scorer, and loss and seconds of every epoch, the last one with its validation metrics.

    A loss that grows or is no number is an InputError that names the setting to change.
    """
    check_content(config.content, data)
    if config.content:
        check_memory(data.num_items, what="als with content")
    problem = make_problem(config, data)
    prior = ContentPrior(content_gram(config.content, data), data.train_count_N, config.content_regularization) if config.content else None
    history: list[dict[str, Any]] = []
    solvers = make_solvers(problem, config)
    users_VD, items_ND = first_vectors(config, problem, seed)
    for epoch in range(config.epochs):
        started = time.monotonic()
        users_VD, items_ND, loss = sweep(solvers, problem, config, users_VD, items_ND, prior)
        _check_loss(loss, history, epoch)
        history.append({"epoch": epoch, "loss": loss, "seconds": time.monotonic() - started})
        logger.info("epoch %d/%d | loss %.6g | %.2f s", epoch + 1, config.epochs, loss, history[-1]["seconds"])
    if prior is not None:
        items_ND = prior.fill_cold(items_ND)
    scorer = Scorer(users_VD, items_ND, problem.user_bias_V, problem.item_bias_N, torch.tensor(problem.global_bias))
    history[-1]["valid"] = validate_scorer(scorer, data, evaluate, config.metric)
    return scorer, history


def make_problem(config: AlsConfig, data: PreparedData) -> Problem:
    """Weights, targets and ridge terms of both sides. Explicit ratings without any value are an InputError."""
    train, num_users, num_items = data.train, data.num_users, data.num_items
    if config.feedback == "implicit":
        return implicit_problem(config, train.users, train.items, train.weights, num_users, num_items)
    has_value = np.isfinite(train.values)
    if not has_value.any():
        raise InputError("train.feedback is explicit, but the interactions have no values", "a filled column 'value'", "set train.feedback=implicit")
    users, items = train.users[has_value], train.items[has_value]
    counted = SparseRows.from_pairs(users, items, np.ones(len(users)), num_users, num_items)
    ratings = SparseRows.from_pairs(users, items, train.values[has_value], num_users, num_items).values / counted.values
    observed = SparseRows(counted.offsets, counted.columns, torch.ones_like(ratings), num_items)
    mean = float(ratings.mean())
    item_bias_N = _shrunken_mean(ratings - mean, observed.columns, num_items)
    residual = ratings - mean - item_bias_N[observed.columns]
    user_bias_V = _shrunken_mean(residual, observed.row_of_entry, num_users)
    targets = residual - user_bias_V[observed.row_of_entry]
    by_item = SparseRows(observed.offsets, observed.columns, targets, num_items).transpose().values
    halves = _halves(config, observed, observed.transpose(), (targets, by_item), masses=(0.0, 0.0))
    return Problem(halves, (torch.ones(num_users), torch.ones(num_items)), user_bias_V, item_bias_N, mean)


def implicit_problem(config: AlsConfig, users: np.ndarray, items: np.ndarray, weights: np.ndarray, num_users: int, num_items: int) -> Problem:
    """Interactions with their weights, which add up where they come twice."""
    observed = SparseRows.from_pairs(users, items, weights, num_users, num_items)
    length_V = observed.lengths.float()
    weight_V = (length_V.clamp(min=1) / length_V[length_V > 0].mean()) ** -config.user_weight_exponent * (length_V > 0)
    masses = config.unobserved_weight * num_items, config.unobserved_weight * float(weight_V.sum())
    halves = _halves(config, observed, observed.scale_rows(weight_V).transpose(), (None, None), masses)
    return Problem(halves, (weight_V, torch.ones(num_items)), torch.zeros(num_users), torch.zeros(num_items), 0.0)


def _shrunken_mean(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Mean per index, drawn to 0 as if ten values of 0 were there too."""
    return torch.zeros(count).index_add_(0, index, values) / (torch.bincount(index, minlength=count) + 10)


def _halves(
    config: AlsConfig, by_user: SparseRows, by_item: SparseRows, targets: tuple[Tensor | None, Tensor | None], masses: tuple[float, float]
) -> tuple[Half, Half]:
    """masses: weight of all unobserved pairs of a row of each side."""
    sides = []
    for rows, target, mass in zip((by_user, by_item), targets, masses, strict=True):
        size = torch.zeros(rows.num_rows).index_add_(0, rows.row_of_entry, rows.values) + mass
        mean = size[size > 0].mean()
        ridge = config.regularization * mean * (size.clamp(min=1e-3 * float(mean)) / mean) ** config.regularization_exponent
        sides.append(Half(rows, target, ridge))
    return sides[0], sides[1]


def first_vectors(config: AlsConfig, problem: Problem, seed: int) -> tuple[Tensor, Tensor]:
    """Small random vectors; zeros for users and items without interactions."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "als"))
    deviation = config.initial_deviation / config.dimension**0.5
    users_VD, items_ND = (
        torch.randn(half.rows.num_rows, config.dimension, generator=generator) * deviation * (half.rows.lengths > 0)[:, None] for half in problem.halves
    )
    return users_VD, items_ND


class HalfSolver:
    """Some rows of both sides."""

    def __init__(self, halves: tuple[Half, Half], block_dimension: int, num_threads: int | None = None):
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self.halves, self.block_dimension = halves, block_dimension

    def solve(self, side: int, vectors_BD: Tensor, fixed_ND: Tensor, unobserved_DD: Tensor, prior_BD: Tensor | None) -> tuple[Tensor, float]:
        """`solve_half` of this solver's rows of a side (0 users, 1 items)."""
        return solve_half(self.halves[side], vectors_BD, fixed_ND, unobserved_DD, self.block_dimension, prior_BD)


Solvers = list[tuple[Any, tuple[tuple[int, int], tuple[int, int]]]]
"""Solvers and the rows (first, after the last) of users and items that they have."""


def make_solvers(problem: Problem, config: AlsConfig) -> Solvers:
    """This process, or one actor per worker; each has about as many interactions of either side as the others."""
    bounds = [_bounds(half, config.workers) for half in problem.halves]
    own = [(bounds[0][place], bounds[1][place]) for place in range(config.workers)]
    if config.workers == 1:
        return [(HalfSolver(problem.halves, config.block_dimension), own[0])]
    actor: Any = ray.remote(num_cpus=config.cpus_per_worker)(HalfSolver)
    num_threads = max(1, int(config.cpus_per_worker))
    parts = [tuple(half.part(*rows) for half, rows in zip(problem.halves, of_both, strict=True)) for of_both in own]
    return [(actor.remote(part, config.block_dimension, num_threads), of_both) for part, of_both in zip(parts, own, strict=True)]


def _bounds(half: Half, workers: int) -> list[tuple[int, int]]:
    """Cuts of the rows with equal numbers of entries and rows together: a row costs about as much as 64 entries."""
    cost = (half.rows.lengths + 64).cumsum(0)
    cuts = [0, *(int(torch.searchsorted(cost, cost[-1] * place // workers)) for place in range(1, workers)), half.rows.num_rows]
    return list(itertools.pairwise(cuts))


def sweep(
    solvers: Solvers, problem: Problem, config: AlsConfig, users_VD: Tensor, items_ND: Tensor, prior: "ContentPrior | None"
) -> tuple[Tensor, Tensor, float]:
    """One epoch: users, then items. Returns both and the loss (heads/als.py)."""
    unobserved_weight = config.unobserved_weight if config.feedback == "implicit" else 0.0
    item_gram_DD = items_ND.T @ items_ND
    users_VD, _ = _solve_side(solvers, 0, users_VD, items_ND, unobserved_weight * item_gram_DD, None)
    weight_V = problem.side_weights[0]
    user_gram_DD = (users_VD * weight_V[:, None]).T @ users_VD
    prior_ND = prior.predict(items_ND) if prior is not None else None
    items_ND, observed_loss = _solve_side(solvers, 1, items_ND, users_VD, unobserved_weight * user_gram_DD, prior_ND)
    pull_ND = items_ND if prior_ND is None else items_ND - prior_ND
    ridge_V, ridge_N = (half.ridge_B for half in problem.halves)
    loss = observed_loss + unobserved_weight * float((user_gram_DD * (items_ND.T @ items_ND)).sum())
    loss += float((ridge_V * weight_V * users_VD.square().sum(dim=1)).sum() + (ridge_N * pull_ND.square().sum(dim=1)).sum())
    return users_VD, items_ND, loss


def _solve_side(solvers: Solvers, side: int, vectors_BD: Tensor, fixed_ND: Tensor, unobserved_DD: Tensor, prior_BD: Tensor | None) -> tuple[Tensor, float]:
    """One side by all solvers, put together in their order."""
    if len(solvers) == 1:
        return solvers[0][0].solve(side, vectors_BD, fixed_ND, unobserved_DD, prior_BD)
    fixed_ref, unobserved_ref = ray.put(fixed_ND), ray.put(unobserved_DD)
    pending = []
    for solver, bounds in solvers:
        own = slice(*bounds[side])
        pending.append(solver.solve.remote(side, vectors_BD[own].clone(), fixed_ref, unobserved_ref, None if prior_BD is None else prior_BD[own].clone()))
    parts: Sequence[tuple[Tensor, float]] = ray.get(pending)
    return torch.cat([vectors for vectors, _ in parts]), sum(loss for _, loss in parts)


def _check_loss(loss: float, history: Sequence[dict[str, Any]], epoch: int) -> None:
    before = history[-1]["loss"] if history else math.inf
    if math.isfinite(loss) and loss <= before * (1 + GROWTH_ALLOWED):
        return
    raise InputError(
        f"als diverges: loss {loss:.6g} in epoch {epoch + 1}{f', {before:.6g} before' if history else ''}",
        "a loss that falls",
        "raise train.regularization (ten times, for a start), or lower the weights of data.events",
    )


class ContentPrior:
    """Item vectors as a ridge regression on content, c_i ≈ W f_i, fitted to the items of training: in its dual form, by the cosines of f."""

    def __init__(self, cosines_NN: Tensor | None, train_count_N: np.ndarray, regularization: float):
        assert cosines_NN is not None
        if not cosines_NN.diagonal().max() > 0:
            raise InputError("train.content describes no item: its columns are empty, or the same for all", "content that differs", "correct train.content")
        self._warm = torch.from_numpy(np.flatnonzero(train_count_N))
        self._cold = torch.from_numpy(np.flatnonzero(train_count_N == 0))
        self._cosines = cosines_NN[:, self._warm] / cosines_NN.diagonal().max()
        system = self._cosines[self._warm].clone()
        system.diagonal().add_(regularization)
        self._factor = torch.linalg.cholesky(system)

    def predict(self, items_ND: Tensor) -> Tensor:
        """W f of every item, (N, D)."""
        return self._cosines @ torch.cholesky_solve(items_ND[self._warm], self._factor)

    def fill_cold(self, items_ND: Tensor) -> Tensor:
        """Items without interactions get what content says of them."""
        items_ND = items_ND.clone()
        items_ND[self._cold] = self.predict(items_ND)[self._cold]
        return items_ND
