"""Engines: the arithmetic of a step, state by name in and out; DeepSpeed in one process over a gloo group of its own. No Ray."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from medley.encoders.logmel_cnn import LogMelCnnConfig
from medley.encoders.resnet import ResNetConfig
from medley.heads.mf import MatrixFactorisationConfig
from medley.model import ModelConfig, build_model
from medley.training.checkpoint import load_weights
from medley.training.checkpoint_parts import StoredState, write_part
from medley.training.config import EngineConfig, OptimizerConfig
from medley.training.engine import DeepSpeedEngine, Engine, TorchEngine, deepspeed_settings, learning_rate_factor, parameter_groups

CPU = torch.device("cpu")
OPTIMIZER = OptimizerConfig(learning_rate=0.03, table_learning_rate=0.1, weight_decay=0.1)
HELD = [("fp32", stage) for stage in range(4)] + [("bf16", stage) for stage in range(1, 4)]
MICRO_BATCHES = 2


class Chain(nn.Module):
    """A table, a matrix, a norm, a buffer: one of each kind that is exported. 7 × 3 and 3 × 5 weights divide by no world size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.item_id = nn.Embedding(7, 3)
        self.mix = nn.Linear(3, 5)
        self.norm = nn.LayerNorm(5)
        self.out = nn.Linear(5, 1)
        self.register_buffer("count_N", torch.arange(4))

    def forward(self, items_B: Tensor) -> tuple[Tensor, ...]:
        return (self.out(self.norm(self.mix(self.item_id(items_B)))).squeeze(-1),)


def train(engine: Engine, first: int, num_steps: int) -> list[float]:
    """Losses of each micro-batch; the rows follow from the step alone."""
    losses = []
    for step in range(first, first + num_steps):
        for micro in range(MICRO_BATCHES):
            (scores_B,) = engine.forward(torch.arange(4) + (step + micro) % 3)
            loss = (scores_B.float() - 1).square().mean()
            engine.backward(loss)
            engine.step(1.0 / (1 + step))
            losses.append(loss.item())
    return losses


def stored(engine: Engine) -> StoredState:
    """The state of an engine that is alone, through a file."""
    snapshot = engine.snapshot()
    folder = tempfile.mkdtemp()
    write_part(folder, 0, snapshot.slices)
    return StoredState(folder, [json.loads(Path(folder, "part-00000.json").read_text())], snapshot.num_steps)


def resumed(build: Callable[[nn.Module], Engine], state: StoredState) -> Engine:
    model = Chain()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9.0)
    load_weights(model, state)
    engine = build(model)
    engine.restore(state, prime=lambda: engine.forward(torch.arange(4))[0].sum())
    return engine


def torch_engine(model: nn.Module) -> TorchEngine:
    return TorchEngine(model, OPTIMIZER, {}, MICRO_BATCHES)


def deepspeed_engine(model: nn.Module, precision: str = "fp32", stage: int = 2) -> DeepSpeedEngine:
    config = EngineConfig(zero_stage=stage, precision=precision)
    return DeepSpeedEngine(model, OPTIMIZER, {}, config, micro_batch_size=4, micro_batches_per_rank=MICRO_BATCHES, device=CPU)


def test_a_restored_torch_engine_goes_on_bit_by_bit() -> None:
    engine = torch_engine(Chain())
    train(engine, 0, 3)
    state = stored(engine)
    assert state.num_steps == 3
    assert {name.rpartition("/")[0] for name in state.entries if "/" in name} == set(dict(Chain().named_parameters()))
    unbroken = train(engine, 3, 3)
    assert train(resumed(torch_engine, state), 3, 3) == unbroken


def test_a_snapshot_is_a_copy_that_later_steps_do_not_touch_and_the_next_snapshot_reuses_its_memory() -> None:
    engine = torch_engine(Chain())
    train(engine, 0, 1)
    snapshot = engine.snapshot()
    before = {each.name: each.values.clone() for each in snapshot.slices}
    train(engine, 1, 2)
    assert all(torch.equal(each.values, before[each.name]) for each in snapshot.slices)
    again = engine.snapshot()
    assert [each.values.data_ptr() for each in again.slices] == [each.values.data_ptr() for each in snapshot.slices]
    assert not torch.equal(snapshot.slices[0].values, before[snapshot.slices[0].name])


def test_two_micro_batches_are_one_batch_of_both() -> None:
    config = OptimizerConfig(learning_rate=0.1, gradient_clipping=1e9)
    halves, whole = TorchEngine(Chain(), config, {}, 2), TorchEngine(Chain(), config, {}, 1)
    items_B = torch.tensor([0, 1, 2, 3, 4, 5])
    for step in range(3):
        for part_B in (items_B[:3], items_B[3:]):
            halves.backward((halves.forward(part_B)[0] - step).square().mean())
            halves.step(1.0)
        whole.backward((whole.forward(items_B)[0] - step).square().mean())
        whole.step(1.0)
    by_halves, at_once = stored(halves), stored(whole)
    assert by_halves.num_steps == at_once.num_steps == 3
    for name in at_once.entries:  # the first moment is the gradient itself, up to its decay
        if "/" in name:
            torch.testing.assert_close(by_halves.tensor(name), at_once.tensor(name), rtol=1e-5, atol=1e-7)


def test_the_whole_gradient_is_clipped_to_its_largest_norm() -> None:
    engine = TorchEngine(Chain(), OptimizerConfig(gradient_clipping=0.5), {}, 1)
    engine.backward(1000 * engine.forward(torch.arange(4))[0].sum())
    engine.step(1.0)
    squares = sum(each.values.square().sum() for each in engine.snapshot().slices if each.name.endswith("/exp_avg"))
    # The first moment after one step is (1 - 0.9) of the gradient.
    assert squares.sqrt().item() == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize(("step", "factor"), [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (55, 0.05 + 0.95 * 0.5), (100, 0.05)])
def test_the_learning_rate_rises_then_falls_by_half_a_cosine(step: int, factor: float) -> None:
    assert learning_rate_factor(step, 100, OptimizerConfig(warmup_share=0.1, final_share=0.05)) == pytest.approx(factor)


def test_without_a_warm_up_the_first_step_has_the_highest_rate() -> None:
    assert learning_rate_factor(0, 100, OptimizerConfig(warmup_share=0.0)) == 1.0
    assert learning_rate_factor(0, 1, OptimizerConfig(warmup_share=1.0)) == 1.0


def test_tables_matrices_norms_and_encoders_have_their_own_rates_and_decays() -> None:
    config = ModelConfig(
        dimension=4,
        encoders={
            "image": ResNetConfig(side_pixels=16, width=8, learning_rate=1e-4),
            "audio": LogMelCnnConfig(sample_rate_hz=8000, clip_seconds=0.25, width=8),
        },
        head=MatrixFactorisationConfig(user_bias=True),
    )
    counts = torch.ones(5, dtype=torch.int64)
    model = build_model(config, {}, train_count_N=counts, user_train_count_V=counts, num_categories={}, mean_value=0.0, pretrained=False)
    rates = {name: encoder.learning_rate for name, encoder in config.encoders.items()}
    optimizer = OptimizerConfig(learning_rate=1e-2, table_learning_rate=0.5, weight_decay=0.2, table_weight_decay=0.3)
    groups = parameter_groups(model, optimizer, rates)
    found = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    by_name = {name: found[id(parameter)] for name, parameter in model.named_parameters()}
    assert len(found) == len(by_name) == sum(len(group["params"]) for group in groups)
    expected = {
        "item_id.weight": (0.5, 0.3),
        "users.embedding.weight": (0.5, 0.3),
        "head.item_bias.weight": (0.5, 0.3),
        "head.user_bias.weight": (0.5, 0.3),
        "encoders.image.conv1.weight": (1e-4, 0.2),
        "encoders.image.bn1.weight": (1e-4, 0.0),
        "encoders.audio.project.weight": (1e-2, 0.2),
        "encoders.audio.project.bias": (1e-2, 0.0),
        "fusion.gate.weight": (1e-2, 0.2),
        "fusion.gate.bias": (1e-2, 0.0),
    }
    assert {name: by_name[name] for name in expected} == expected
    assert all(group["base_lr"] == group["lr"] for group in groups)


def test_frozen_parameters_are_in_no_group() -> None:
    model = Chain()
    model.mix.requires_grad_(False)
    kept = {id(parameter) for group in parameter_groups(model, OPTIMIZER, {}) for parameter in group["params"]}
    assert kept == {id(parameter) for name, parameter in model.named_parameters() if not name.startswith("mix.")}


def test_bf16_at_stage_0_is_refused() -> None:
    with pytest.raises(ValidationError, match="zero_stage 1, 2 or 3 with precision bf16"):
        EngineConfig(precision="bf16", zero_stage=0)


@pytest.mark.parametrize(("precision", "stage"), HELD)
def test_deepspeed_understands_our_settings(process_group: None, precision: str, stage: int) -> None:
    from medley.training.engine import import_deepspeed

    import_deepspeed(CPU)
    from deepspeed.runtime.config import DeepSpeedConfig

    found = DeepSpeedConfig(deepspeed_settings(EngineConfig(zero_stage=stage, precision=precision, bucket_elements=4000), 0.5, 64, 3))
    assert (found.train_batch_size, found.train_micro_batch_size_per_gpu, found.gradient_accumulation_steps) == (192, 64, 3)
    assert found.zero_optimization_stage == stage
    assert found.gradient_clipping == 0.5
    assert found.bfloat16_config.enabled == (precision == "bf16")
    assert found.zero_config.reduce_bucket_size == 4000
    assert stage != 3 or found.zero_config.prefetch_bucket_size == 4000


@pytest.mark.parametrize(("precision", "stage"), HELD)
def test_a_deepspeed_run_goes_on_at_every_other_stage(process_group: None, precision: str, stage: int) -> None:
    engine = deepspeed_engine(Chain(), precision, stage)
    train(engine, 0, 3)
    state = stored(engine)
    unbroken = train(engine, 3, 3)
    assert state.num_steps == 3
    assert {entry.dtype for name, entry in state.entries.items() if name != "count_N"} == {torch.float32}
    for other_precision, other_stage in HELD:
        if other_precision == precision:
            other = resumed(lambda model, held=(precision, other_stage): deepspeed_engine(model, *held), state)  # type: ignore[misc]
            again = stored(other)
            assert again.num_steps == 3
            # Bit by bit, the float32 master weights of bf16 included.
            assert again.entries == state.entries
            assert all(torch.equal(again.tensor(name), state.tensor(name)) for name in state.entries)
            assert train(other, 3, 3) == pytest.approx(unbroken, abs=1e-6)


def test_deepspeed_steps_as_plain_torch_does(process_group: None) -> None:
    plain = train(torch_engine(Chain()), 0, 6)
    for stage in range(4):
        assert train(deepspeed_engine(Chain(), "fp32", stage), 0, 6) == pytest.approx(plain, abs=1e-6)


def test_frozen_weights_are_written_too(process_group: None) -> None:
    for stage in range(4):
        model = Chain()
        model.mix.requires_grad_(False)
        weight = model.mix.weight.detach().clone()
        engine = deepspeed_engine(model, "fp32", stage)
        train(engine, 0, 1)
        state = stored(engine)
        assert {entry.name for entry in state.weights()} == set(Chain().state_dict())
        assert torch.equal(state.tensor("mix.weight"), weight)
        assert not any(name.startswith("mix.") and "/" in name for name in state.entries)
