"""Large encoders at ZeRO-3, on two gloo ranks: sharded while they are loaded, trained, saved, resumed. The functions on top run on the ranks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from medley.encoders.own_ranges import stored_tensors
from medley.losses import InBatchSoftmaxConfig, batch_loss
from medley.schema import Batch
from medley.training.checkpoint import load_weights
from medley.training.checkpoint_parts import StoredState, index_file, write_part
from medley.training.config import EngineConfig, OptimizerConfig
from medley.training.engine import DeepSpeedEngine, Engine, TorchEngine, parameter_groups
from medley.training.sharded_building import announce_sharding
from tests.training.tiny_text import NUM_ITEMS, build_recommender, make_batch, write_bert
from tests.training.two_ranks import TwoRanks

CPU = torch.device("cpu")
OPTIMIZER = OptimizerConfig(learning_rate=0.01, weight_decay=0.1)
RATES = {"text": None, "vector": None}
USERS = [[0, 1, 2], [3, 2, 1]]
ITEMS = [[0, 1, 2], [3, 4, 4]]


def step(engine: Engine, batches: Sequence[Batch]) -> float:
    """Train one step on this rank's micro-batches of two; returns the share of its loss in the loss of all rows."""
    share = 0.0
    for batch in batches:
        torch.manual_seed(int(batch.user_index_B[0]))  # draws belong to the micro-batch, as in training
        output = engine.forward(batch)
        loss = batch_loss(InBatchSoftmaxConfig(temperature=1.0), output, batch, torch.arange(1, NUM_ITEMS + 1), 21, 3) / 6
        engine.backward(loss * 2)
        engine.step(1.0)
        share += loss.item()
    return share


def deepspeed(model: Any, stage: int) -> DeepSpeedEngine:
    config = EngineConfig(zero_stage=stage)  # type: ignore[arg-type]
    return DeepSpeedEngine(model, OPTIMIZER, RATES, config, micro_batch_size=3, micro_batches_per_rank=1, device=CPU)


def train_on_rank(rank: int, folder: str, checkpoint: str, stage: int) -> dict[str, Any]:
    """Four steps from the folder's weights, a checkpoint after the second; what this rank held of the encoder before training."""
    with announce_sharding(EngineConfig(zero_stage=stage), 3, CPU):  # type: ignore[arg-type]
        model = build_recommender(folder)
        encoder = model.encoders["text"].model
        held = sum(getattr(parameter, "ds_tensor", parameter).numel() for parameter in encoder.parameters())
        own = {name: parameter.ds_tensor.tolist() for name, parameter in encoder.named_parameters() if hasattr(parameter, "ds_tensor")}
        groups = {group["weight_decay"]: len(group["params"]) for group in parameter_groups(model, OPTIMIZER, RATES)}
        engine = deepspeed(model, stage)
        batch = make_batch(model, USERS[rank], ITEMS[rank])
        losses = [step(engine, [batch]) for _ in range(2)]
        snapshot = engine.snapshot()
        write_part(checkpoint, rank, snapshot.slices)
        losses += [step(engine, [batch]) for _ in range(2)]
    return {"losses": losses, "held": held, "own": own, "groups": groups}


def resume_on_rank(rank: int, folder: str, checkpoint: str, stage: int) -> list[float]:
    """Two more steps from the checkpoint."""
    with announce_sharding(EngineConfig(zero_stage=stage), 3, CPU):  # type: ignore[arg-type]
        state = stored_state(checkpoint)
        model = build_recommender(folder, pretrained=False)
        load_weights(model, state, rank)
        engine = deepspeed(model, stage)
        batch = make_batch(model, USERS[rank], ITEMS[rank])
        engine.restore(state, prime=lambda: engine.forward(batch)[0].sum())
        return [step(engine, [batch]) for _ in range(2)]


def stored_state(checkpoint: str) -> StoredState:
    indices = [json.loads(Path(checkpoint, index_file(number)).read_text()) for number in range(2)]
    return StoredState(checkpoint, indices, 2)


def train_without_text_on_one(rank: int, folder: str, stage: int) -> list[float]:
    """Two steps in which no item of rank 1 has a text."""
    with announce_sharding(EngineConfig(zero_stage=stage), 3, CPU):  # type: ignore[arg-type]
        model = build_recommender(folder)
        engine = deepspeed(model, stage)
        batch = make_batch(model, USERS[rank], ITEMS[rank], without_text=rank == 1)
        return [step(engine, [batch]) for _ in range(2)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_bert(tmp_path_factory.mktemp("bert"))


def in_one_process(folder: str, num_steps: int, *, without_text_on_one: bool = False) -> list[float]:
    """The same steps by one rank that computes both micro-batches."""
    engine = TorchEngine(build_recommender(folder), OPTIMIZER, RATES, 2)
    batches = [make_batch(engine.model, USERS[rank], ITEMS[rank], without_text=without_text_on_one and rank == 1) for rank in range(2)]
    return [step(engine, batches) for _ in range(num_steps)]


def both(losses: list[list[float]]) -> list[float]:
    """The loss of all rows."""
    return [sum(shares) for shares in zip(*losses, strict=True)]


def test_each_rank_reads_its_half_and_the_group_trains_saves_and_resumes_like_one_process(ranks: TwoRanks, bert: str, tmp_path: Path):
    whole = in_one_process(bert, 4)
    trained = ranks(train_on_rank, bert, str(tmp_path), 3)
    num_elements = sum(parameter.numel() for parameter in build_recommender(bert).encoders["text"].model.parameters())
    num_tensors = len(stored_tensors(bert))
    assert both([each["losses"] for each in trained]) == pytest.approx(whole, abs=1e-5)
    for each in trained:  # half, rounded up for each tensor
        assert num_elements / 2 <= each["held"] <= num_elements / 2 + num_tensors
        assert each["groups"] == {group["weight_decay"]: len(group["params"]) for group in parameter_groups(build_recommender(bert), OPTIMIZER, RATES)}
    for name, stored in stored_tensors(bert).items():
        joined = trained[0]["own"][name] + trained[1]["own"][name]
        assert joined[: stored.num_elements] == stored.read(0, stored.num_elements).tolist()
    assert both(ranks(resume_on_rank, bert, str(tmp_path), 3)) == pytest.approx(whole[2:], abs=1e-5)
    assert both(ranks(resume_on_rank, bert, str(tmp_path), 2)) == pytest.approx(whole[2:], abs=1e-5)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_modality_that_one_rank_lacks_does_not_hang_and_gives_the_loss_of_one_rank(ranks: TwoRanks, bert: str, stage: int):
    whole = in_one_process(bert, 2, without_text_on_one=True)
    assert both(ranks(train_without_text_on_one, bert, stage)) == pytest.approx(whole, abs=1e-5)
