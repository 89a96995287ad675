"""Estimates of memory: formulas by hand, activations of a known network, and estimates beside measured peaks of the real engine."""

import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medley.training.config import EngineConfig, GradientTrainConfig, OptimizerConfig
from medley.training.engine import DeepSpeedEngine
from medley.training.memory import MAX_GATHERED_ELEMENTS, Estimate, ModelSize, estimate
from medley.training.memory_check import GB, MemoryReport, check_disk, judge, largest_micro_batch
from medley.training.memory_pass import LiveTensors, activation_bytes

SIZE = ModelSize(num_parameters=1000, num_trainable=800, largest_group=600, largest_parameter=100, buffer_bytes=40)
TOLERANCE = (0.85, 1.2)
"""estimate / measured peak"""
HELD = [("fp32", stage) for stage in range(4)] + [("bf16", stage) for stage in range(1, 4)]


class Stack(nn.Module):
    """A table of 200,000 weights, four trained matrices of 40,000, one that is frozen; as much of each kind as matters in megabytes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict()
        self.item_id = nn.Embedding(1000, 200)
        self.layers = nn.ModuleList(nn.Linear(200, 200) for _ in range(4))
        self.frozen = nn.Linear(200, 200).requires_grad_(False)

    def forward(self, items_B: Tensor) -> tuple[Tensor, ...]:
        hidden_BD = self.item_id(items_B)
        for layer in self.layers:
            hidden_BD = torch.relu(layer(hidden_BD))
        return (self.frozen(hidden_BD),)


def of(stage: int, num_ranks: int = 2, *, is_bf16: bool = False, bucket_elements: int = 50, size: ModelSize = SIZE, activation_bytes: int = 7) -> Estimate:
    return estimate(size, stage, "none", is_bf16=is_bf16, num_ranks=num_ranks, bucket_elements=bucket_elements, activation_bytes=activation_bytes)


def test_without_sharding_a_rank_holds_weights_two_moments_and_two_copies_of_the_gradient() -> None:
    entry = of(0)
    assert (entry.weights, entry.optimizer, entry.gradients, entry.update) == (4 * 1000 + 40, 8 * 800, 4 * 800, 8 * 800)
    assert entry.peak == entry.weights + entry.optimizer + 8 * 800
    assert of(0, activation_bytes=4000).peak == entry.weights + entry.optimizer + 4 * 800 + 4000


def test_stages_1_and_2_share_master_weights_and_moments_among_the_ranks() -> None:
    for stage in (1, 2):
        assert of(stage, 1).optimizer == 12 * 800
        assert of(stage, 4).optimizer == 12 * 800 / 4
        assert of(stage, 4).weights == 4 * 1000 + 40
    assert of(1, 4).gradients == 4 * (800 + 50)
    assert of(1, 4).update == 4 * (800 + 200 + 50)
    assert of(2, 4).update == 600
    # What waits for its exchange: own quarter, two buckets, two of the largest weight; then the averaged quarter and a bucket.
    assert of(2, 4).gradients == 4 * (200 + 2 * (50 + 100) + 200 + 50)


def test_stage_3_shares_the_weights_and_gathers_them_all_while_they_are_few() -> None:
    entry = of(3, 4)
    assert entry.weights == 1000 + 40
    assert entry.gradients == 4 * (200 + 1000 + 50)
    assert of(3, 1).gradients == 4 * (800 + 50)
    large = ModelSize(4 * MAX_GATHERED_ELEMENTS, 4 * MAX_GATHERED_ELEMENTS, 10**6, 10**6, 0)
    assert of(3, 8, size=large).gradients < 4 * (2 * MAX_GATHERED_ELEMENTS)


def test_bf16_halves_weights_and_gradients_and_keeps_master_weights_whole() -> None:
    assert of(2, 2, is_bf16=True).weights == 2 * 1000 + 40
    assert of(2, 2, is_bf16=True).gradients * 2 == of(2, 2).gradients
    assert of(2, 2, is_bf16=True).optimizer == of(2, 2).optimizer


def test_offload_moves_the_optimiser_to_the_host() -> None:
    entry = estimate(SIZE, 2, "optimizer", is_bf16=True, num_ranks=2, bucket_elements=50, activation_bytes=0)
    assert entry.optimizer == 0
    assert entry.host == (12 * 800 + 4 * 800 + 2 * 800) / 2
    both = estimate(SIZE, 3, "optimizer and parameters", is_bf16=True, num_ranks=2, bucket_elements=50, activation_bytes=0)
    assert both.weights == SIZE.buffer_bytes
    assert both.host == entry.host + 2 * 1000 / 2


def test_live_tensors_are_counted_until_they_are_freed() -> None:
    with LiveTensors() as live:
        first = torch.zeros(250)
        second = first + 1
        _view = second[:10]
        assert live.num_bytes == 2000
        del first
        assert live.num_bytes == 1000
    assert live.peak == 2000


class Square(nn.Module):
    """scores = (x W)² of a batch (B, 10) with a W of 10 × 20."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(10, 20))

    def forward(self, batch_BD: Tensor) -> tuple[Tensor, ...]:
        return ((batch_BD @ self.weight).square(),)


def test_activations_grow_with_the_rows_and_leave_no_gradient() -> None:
    model = Square()
    bytes_of = {rows: activation_bytes(model, torch.ones(rows, 10)) for rows in (100, 200)}  # type: ignore[arg-type]
    assert model.weight.grad is None
    # Product and its square are there in any case (2 × 20 floats a row), their gradients and the softmax's at most (6 more).
    assert 2 * 20 * 4 * 100 < bytes_of[100] < 8 * 20 * 4 * 100
    assert bytes_of[200] == pytest.approx(2 * bytes_of[100], rel=0.05)


def measured_and_estimated(precision: str, stage: int, num_ranks: int) -> tuple[int, int]:
    """Peak bytes of live tensors over two steps of two micro-batches, and what was foretold; needs a process group."""
    items_B = torch.arange(64)
    activations = activation_bytes(Stack(), items_B) // (2 if precision == "bf16" else 1)  # type: ignore[arg-type]
    optimizer, config = OptimizerConfig(), EngineConfig(zero_stage=stage, precision=precision, bucket_elements=10_000)
    with LiveTensors() as live:
        model = Stack()
        size = ModelSize.of(model, optimizer, {})
        engine = DeepSpeedEngine(model, optimizer, {}, config, micro_batch_size=64, micro_batches_per_rank=2, device=torch.device("cpu"))
        for _ in range(4):
            (scores,) = engine.forward(items_B)
            engine.backward(scores.float().logsumexp(dim=1).sum())
            engine.step(1.0)
    foretold = estimate(size, stage, "none", is_bf16=precision == "bf16", num_ranks=num_ranks, bucket_elements=10_000, activation_bytes=activations)
    return live.peak, foretold.peak


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(("precision", "stage"), HELD)
def test_the_estimate_is_near_the_measured_peak(process_group: None, precision: str, stage: int) -> None:
    measured, foretold = measured_and_estimated(precision, stage, 1)
    print(f"{precision} stage {stage}: measured {measured / 1e6:.2f} MB, estimated {foretold / 1e6:.2f} MB, ratio {foretold / measured:.3f}")
    assert TOLERANCE[0] <= foretold / measured <= TOLERANCE[1]


def rank_of_two(rank: int, port: int, folder: str) -> None:
    """One of two processes of the long test."""
    import os

    os.environ |= {"LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    lines = []
    for precision, stage in HELD:
        measured, foretold = measured_and_estimated(precision, stage, 2)
        lines.append(f"{precision} {stage} {measured} {foretold}")
    Path(folder, str(rank)).write_text("\n".join(lines))
    torch.distributed.destroy_process_group()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_estimate_is_near_the_measured_peak_of_either_of_two_ranks(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(rank_of_two, (free_port(), str(tmp_path)), nprocs=2)
    for rank in ("0", "1"):
        for line in (tmp_path / rank).read_text().splitlines():
            precision, stage, measured, foretold = line.split()
            ratio = int(foretold) / int(measured)
            print(f"rank {rank} {precision} stage {stage}: {ratio:.3f}")
            assert TOLERANCE[0] <= ratio <= TOLERANCE[1], (rank, line)


def report(capacity: int | None, *, stage: int = 2, of_gpu: bool = True) -> tuple[MemoryReport, GradientTrainConfig]:
    """1,000,000 parameters at two ranks; activations of 1 MB at 25 rows and 4 MB at 100."""
    train = GradientTrainConfig(micro_batch_size=100, workers=2, engine=EngineConfig(zero_stage=stage, bucket_elements=1000))
    size = ModelSize(10**6, 10**6, 10**6, 10**5, 0)
    made = MemoryReport(size, 100, 2, "fp32", stage, {25: 10**6, 100: 4 * 10**6}, num_train_rows=1000)
    made.capacity_bytes, made.capacity_of, made.process_bytes = capacity, "GPU" if of_gpu else "host", 10**9
    made.estimates = [made.at(number, "none", train, 100) for number in range(4)]
    return made, train


def test_activations_follow_the_line_through_what_was_measured() -> None:
    made, _ = report(None)
    assert made.activations(100) == 4 * 10**6
    assert made.activations(200) == 8 * 10**6


def test_a_stage_that_does_not_fit_is_an_error_that_names_the_first_that_does() -> None:
    made, train = report(None)
    peaks = [entry.peak for entry in made.estimates]
    assert peaks[3] < peaks[2] < peaks[0]
    made, train = report(int((peaks[2] + peaks[0]) / 2 / 0.9), stage=0)
    (finding,) = judge(made, train)
    assert finding.level == "error"
    assert finding.what.startswith("stage 0 with micro-batch 100 takes about 0.02 GB of a rank's GPU memory")
    assert finding.remedy.startswith("set train.engine.zero_stage=")


def test_where_no_stage_fits_a_smaller_micro_batch_is_named_and_where_none_does_that_is_said() -> None:
    made, train = report(None)
    held = made.at(3, "none", train, 1).peak
    made, train = report(int(held / 0.9) + 10**5)
    (finding,) = judge(made, train)
    assert "train.engine.zero_stage=3" in finding.remedy
    assert f"train.micro_batch_size={largest_micro_batch(made, train, made.estimates[3])} " in finding.remedy
    made, train = report(10**6)
    (finding,) = judge(made, train)
    assert finding.remedy.startswith("no stage fits at any micro-batch")


def test_on_cpus_the_rest_of_the_process_counts_too() -> None:
    made, train = report(10**9 + 10**8, of_gpu=False)
    assert made.needed(made.estimates[2]) == made.estimates[2].peak + 10**9
    assert judge(made, train)[0].level == "error"
    made, train = report(2 * 10**9, of_gpu=False)
    assert judge(made, train)[0].level == "ok"


def test_a_capacity_that_nobody_knows_is_a_warning_with_what_is_needed() -> None:
    made, train = report(None)
    (finding,) = judge(made, train)
    assert finding.level == "warning"
    assert f"{made.estimates[2].peak / GB:.2f} GB" in finding.what


def test_checkpoints_that_the_disk_has_no_room_for_are_an_error(tmp_path: Path) -> None:
    train = GradientTrainConfig(keep_checkpoints=2)
    small = check_disk(SIZE, 10, 4, train, str(tmp_path))
    assert [finding.level for finding in small] == ["ok"]
    huge = ModelSize(10**15, 10**15, 1, 1, 0)
    (finding,) = check_disk(huge, 10, 4, train, str(tmp_path / "not" / "there"))
    assert finding.level == "error"
    # Two kept, the best and one being written, 12 bytes a parameter; the finished run's weights, 4.
    assert finding.what.startswith(f"disk: {(4 * 12 + 4) * 10**6:.2f} GB for checkpoints of {12 * 10**6:.3f} GB each")
