"""Sharded tables beside the engines: the same steps at every ZeRO stage and world size, one clipping, one checkpoint."""

import json
from pathlib import Path

import pytest
import torch

from medley.training.checkpoint import load_weights
from medley.training.checkpoint_parts import StoredState, index_file, write_part
from medley.training.engine import DeepSpeedEngine, Engine
from tests.training.table_ranks import CONFIG, MICRO_BATCHES, Held, make_engine, run_on_rank, run_steps
from tests.training.two_ranks import TwoRanks

HELD: list[Held] = [("torch", "fp32"), (0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32")]
IN_BF16: list[Held] = [(1, "bf16"), (2, "bf16"), (3, "bf16")]


def resumed(held: Held, folder: Path, num_parts: int, num_steps: int, *, has_layers: bool = True) -> Engine:
    """An engine in a world of one that goes on from a checkpoint."""
    state = StoredState(str(folder), [json.loads((folder / index_file(number)).read_text()) for number in range(num_parts)], num_steps)
    engine = make_engine(held, 0, 1, has_layers=has_layers)
    engine.restore(state, prime=lambda: engine.forward(torch.arange(10).view(5, 2))[0])
    load_weights(engine.model, state)  # a run loads them before it has an engine; this one's first step wrote its own over them
    return engine


@pytest.mark.parametrize("held", HELD[1:])
def test_every_stage_steps_as_plain_torch_does(process_group: None, held: Held) -> None:
    assert run_steps(make_engine(held, 0, 1), 0, 6) == pytest.approx(run_steps(make_engine(("torch", "fp32"), 0, 1), 0, 6), abs=1e-5)


@pytest.mark.parametrize("held", HELD + IN_BF16)
def test_tables_and_layers_are_clipped_by_the_norm_of_both(process_group: None, held: Held) -> None:
    engine = make_engine(held, 0, 1)
    for _ in range(MICRO_BATCHES):
        (loss,) = engine.forward(torch.tensor([[1, 2], [3, 4]]))
        engine.backward(loss)
        engine.step(1.0)
    if isinstance(engine, DeepSpeedEngine):
        assert float(engine.engine.get_global_grad_norm()) > engine.tables.norm > CONFIG.gradient_clipping
    by_name: dict[str, float] = {}
    for each in engine.snapshot().slices:
        if each.name.endswith("/exp_avg"):
            by_name[each.name] = by_name.get(each.name, 0.0) + each.values.square().sum().item()
    assert {"vectors.weight/exp_avg", "biases.weight/exp_avg", "layers.0.weight/exp_avg"} <= by_name.keys()
    # The first moment after one step is (1 - 0.9) of the gradient.
    assert sum(by_name.values()) ** 0.5 == pytest.approx(0.1 * CONFIG.gradient_clipping, rel=1e-3)


@pytest.mark.parametrize("held", [(2, "fp32"), (3, "fp32")])
def test_two_ranks_train_as_one_and_what_they_saved_goes_on_at_one(ranks: TwoRanks, process_group: None, tmp_path: Path, held: Held) -> None:
    alone = run_steps(make_engine(("torch", "fp32"), 0, 1), 0, 6)
    together = [sum(losses) for losses in zip(*ranks(run_on_rank, held, str(tmp_path), True), strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    for other in (("torch", "fp32"), (2, "fp32")):
        engine = resumed(other, tmp_path, 2, 3)
        assert run_steps(engine, 3, 3) == pytest.approx(alone[3:], abs=1e-5)
        assert engine.snapshot().num_steps == 6


def test_a_model_of_nothing_but_tables_trains_and_resumes_without_deepspeed(ranks: TwoRanks, tmp_path: Path) -> None:
    alone = run_steps(make_engine(("torch", "fp32"), 0, 1, has_layers=False), 0, 6)
    together = [sum(losses) for losses in zip(*ranks(run_on_rank, ("torch", "fp32"), str(tmp_path), False), strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert run_steps(resumed(("torch", "fp32"), tmp_path, 2, 3, has_layers=False), 3, 3) == pytest.approx(alone[3:], abs=1e-5)


def test_a_step_that_deepspeed_skips_moves_no_row(process_group: None, tmp_path: Path) -> None:
    engine = make_engine((2, "bf16"), 0, 1)
    run_steps(engine, 0, 1)
    write_part(str(tmp_path), 0, engine.snapshot().slices)
    for _ in range(MICRO_BATCHES):
        engine.backward(engine.forward(torch.tensor([[1, 2]]))[0] * torch.inf)
        engine.step(1.0)
    assert not engine.engine.was_step_applied()  # type: ignore[attr-defined]
    before = resumed((2, "bf16"), tmp_path, 1, 1)
    assert engine.snapshot().num_steps == 1
    assert run_steps(engine, 1, 2) == pytest.approx(run_steps(before, 1, 2), abs=1e-3)
