"""Negatives pooled across two gloo ranks: 2 ranks × B rows have the loss, and the gradients, of 1 rank × 2 B rows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from medley.config import dump_run, make_run
from medley.data.batches import BatchMaker, PreparedItems
from medley.data.plan import Plan
from medley.data.prepared import PreparedData
from medley.losses import InBatchSoftmaxConfig, batch_loss
from medley.model import ItemIdConfig, ModelConfig, build_model
from medley.schema import Batch, InputError
from medley.training.claim import deciding_values
from medley.training.config import EngineConfig, GradientTrainConfig, OptimizerConfig
from medley.training.engine import DeepSpeedEngine, Engine, TorchEngine
from medley.training.placement import check_workers
from medley.users.history_mean import HistoryMeanUserConfig
from tests.training.two_ranks import TwoRanks

CPU = torch.device("cpu")
OPTIMIZER = OptimizerConfig(learning_rate=0.05)
LOSS = InBatchSoftmaxConfig(temperature=0.5, across_ranks=True)


def build(data: PreparedData) -> Any:
    torch.manual_seed(0)
    return build_model(
        ModelConfig(dimension=4, users=HistoryMeanUserConfig(), item_id=ItemIdConfig(dropout=0.0)),
        {},
        train_count_N=torch.from_numpy(data.train_count_N),
        user_train_count_V=torch.from_numpy(data.train_lists.lengths),
        num_categories={},
        mean_value=0.0,
        pretrained=True,
    )


def batches(data: PreparedData, model: Any, loss: InBatchSoftmaxConfig, rank: int, num_ranks: int, batch_size: int) -> tuple[Plan, list[Batch]]:
    """This rank's micro-batch of each global batch of an epoch."""
    plan = Plan(len(data.train), batch_size, num_ranks, seed=0)
    maker = BatchMaker.create(
        data,
        plan,
        history_length=3,
        attribute_columns=(),
        whole_catalogue=False,
        num_uniform_negatives=loss.num_uniform_negatives,
        num_pooled_ranks=num_ranks,
    )
    return plan, [maker.batch((0, number, rank), PreparedItems({}), {}) for number in range(plan.num_global_batches)]


def train(engine: Engine, plan: Plan, own: list[Batch], loss: InBatchSoftmaxConfig, counts_N: torch.Tensor) -> list[float]:
    """This rank's share of each step's loss, as `training/loop.py` has it."""
    shares = []
    for batch in own:
        output = engine.forward(batch)
        share = batch_loss(loss, output, batch, counts_N, plan.num_rows, plan.micro_batch_size) / plan.num_rows_in(batch.place[1])
        engine.backward(share * plan.num_micro_batches)
        engine.step(1.0)
        shares.append(share.item())
    return shares


def train_on_rank(rank: int, uri: str, loss: InBatchSoftmaxConfig, stage: int) -> list[float]:
    data = PreparedData.open(uri)
    config = EngineConfig(zero_stage=stage)  # type: ignore[arg-type]
    engine = DeepSpeedEngine(build(data), OPTIMIZER, {}, config, micro_batch_size=2, micro_batches_per_rank=1, device=CPU)
    plan, own = batches(data, engine.model, loss, rank, 2, 2)
    return train(engine, plan, own * 2, loss, torch.from_numpy(data.train_count_N))


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("num_uniform_negatives", [0, 2])
def test_two_ranks_have_the_loss_of_one_rank_with_twice_the_rows(ranks: TwoRanks, hand_prepared: str, num_uniform_negatives: int, stage: int):
    loss, data = LOSS.model_copy(update={"num_uniform_negatives": num_uniform_negatives}), PreparedData.open(hand_prepared)
    model = build(data)
    plan, own = batches(data, model, loss, 0, 1, 4)
    # 6 rows in global batches of 4: the second of the two ranks' has one row each; two epochs, so that gradients show.
    whole = train(TorchEngine(model, OPTIMIZER, {}, 1), plan, own * 2, loss, torch.from_numpy(data.train_count_N))
    shares = ranks(train_on_rank, hand_prepared, loss, stage)
    assert np.sum(shares, axis=0) == pytest.approx(whole, abs=1e-5)
    alone = loss.model_copy(update={"across_ranks": False})
    assert whole[0] != pytest.approx(sum(_losses_alone(data, alone)), abs=1e-3)


def test_the_number_of_workers_decides_a_run_that_pools_their_items():
    def values(across_ranks: bool, workers: int) -> dict[str, Any]:
        loss, train = {"kind": "in_batch_softmax", "across_ranks": across_ranks}, {"workers": workers}
        return deciding_values(dump_run(make_run({"name": "a", "loss": loss, "train": train}, "test")))

    assert values(False, 1) == values(False, 2)
    assert values(True, 1)["train"] != values(True, 2)["train"]


def test_a_range_of_workers_is_refused_where_they_pool_their_items():
    with pytest.raises(InputError, match=r"train\.workers=\[1, 2\] with loss\.across_ranks; expected one number of workers"):
        check_workers(GradientTrainConfig(workers=(1, 2)), is_fixed=True)


def _losses_alone(data: PreparedData, loss: InBatchSoftmaxConfig) -> list[float]:
    """The first step's shares where each of two ranks has only its own negatives."""
    model, shares = build(data), []
    for rank in range(2):
        plan, (first, *_) = batches(data, model, loss, rank, 2, 2)
        first = replace(first, pool=None)
        shares.append(batch_loss(loss, model(first), first, torch.from_numpy(data.train_count_N), plan.num_rows, 2).item() / 4)
    return shares
