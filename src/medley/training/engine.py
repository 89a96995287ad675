"""The step: forward, backward, update. The only file that imports deepspeed.

`DeepSpeedEngine` trains over any number of workers at any ZeRO stage; `TorchEngine` is plain AdamW in one process, for the light trials of a
search. Both give out and take back weights and optimiser state by parameter name, in float32 (`engine_state.py`).
"""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medley.model import RecommenderModel
from medley.training.checkpoint_parts import Snapshot, StoredState
from medley.training.config import EngineConfig, GradientTrainConfig, OptimizerConfig
from medley.training.engine_state import HostCopies, count_steps, fill_from, held_slices, make_states, set_steps, take_snapshot
from medley.training.table_updates import TableUpdates, clip_with_tables, join_norms

CPU = torch.device("cpu")


class Engine(Protocol):
    """What the loop asks of an engine."""

    model: RecommenderModel
    device: torch.device

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Call the model."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch; over a step they are averaged."""

    def step(self, learning_rate_factor: float) -> None:
        """After each micro-batch; the last one of a step updates the weights."""

    def snapshot(self) -> Snapshot:
        """What this rank is to write of a checkpoint, on the CPU; good until the next one is taken."""

    def restore(self, state: StoredState, prime: Callable[[], Tensor]) -> None:
        """Continue from a checkpoint; weights must already be in the model. prime() runs one forward pass and returns a scalar."""


def learning_rate_factor(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Share of the highest learning rate at a step: a linear rise, then half a cosine down to `final_share`."""
    warmup = max(1, round(config.warmup_share * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(model: nn.Module, config: OptimizerConfig, encoder_rates: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """AdamW groups by learning rate and decay: encoders (each its own rate), user and item tables, matrices, biases and norms."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(_rate_and_decay(name, parameter, config, encoder_rates), []).append(parameter)
    return [{"params": parameters, "lr": rate, "weight_decay": decay, "base_lr": rate} for (rate, decay), parameters in groups.items()]


def _rate_and_decay(name: str, parameter: nn.Parameter, config: OptimizerConfig, encoder_rates: Mapping[str, float | None]) -> tuple[float, float]:
    room, _, rest = name.partition(".")
    is_matrix = len(getattr(parameter, "ds_shape", parameter.shape)) > 1  # of a sharded parameter DeepSpeed's attribute tells
    if room == "encoders":
        rate = encoder_rates[rest.split(".")[0]] or config.learning_rate
        return rate, config.weight_decay if is_matrix else 0.0
    is_table = room in ("item_id", "head") or (room == "users" and "embedding" in rest)
    if is_table:
        return config.table_learning_rate or config.learning_rate, config.table_weight_decay
    return config.learning_rate, config.weight_decay if is_matrix else 0.0


def build_optimizer(model: nn.Module, config: OptimizerConfig, encoder_rates: Mapping[str, float | None]) -> torch.optim.AdamW:
    """torch's AdamW: compiled extensions of DeepSpeed would be built on first use. Fused: an update in one pass over memory, a sixth of the time on CPUs."""
    nothing = [{"params": [], "base_lr": config.learning_rate}]  # where every weight is a row of a sharded table
    return torch.optim.AdamW(parameter_groups(model, config, encoder_rates) or nothing, betas=(0.9, 0.98), eps=1e-8, fused=True)


class TorchEngine:
    """One process, float32, no sharding; several processes only where every weight is a row of a sharded table, since nothing else is averaged."""

    def __init__(
        self,
        model: RecommenderModel,
        config: OptimizerConfig,
        encoder_rates: Mapping[str, float | None],
        num_micro_batches: int,
        device: torch.device = CPU,
    ):
        """num_micro_batches: of this process in a step."""
        self.model = model
        self.device = device
        self.optimizer = build_optimizer(model, config, encoder_rates)
        self.tables = TableUpdates(model, config)
        assert self.tables.num_ranks == 1 or not has_dense_weights(model)
        self.num_micro_batches = num_micro_batches
        self.num_backwards = 0
        self.copies = HostCopies()

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Call the model."""
        return self.model(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's share of the gradient."""
        (loss / self.num_micro_batches).backward()
        self.num_backwards += 1

    def step(self, learning_rate_factor: float) -> None:
        """Update after the last micro-batch."""
        if self.num_backwards < self.num_micro_batches:
            return
        self.num_backwards = 0
        self.tables.collect()
        total_norm = clip_with_tables(self.model, self.tables)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.tables.update(total_norm, learning_rate_factor)

    def snapshot(self) -> Snapshot:
        """The whole state; of sharded tables this rank's rows."""
        rank, num_ranks = self.tables.rank, self.tables.num_ranks
        return take_snapshot(held_slices(self.model, self.optimizer, rank), self.tables.num_steps, rank, num_ranks, self.copies)

    def restore(self, state: StoredState, prime: Callable[[], Tensor]) -> None:
        """Optimiser states by name."""
        make_states(self.model, self.optimizer, state)
        fill_from(state, held_slices(self.model, self.optimizer, self.tables.rank))
        self.tables.num_steps = state.num_steps


def build_engine(
    model: RecommenderModel, train: GradientTrainConfig, encoder_rates: Mapping[str, float | None], num_ranks: int, device: torch.device
) -> Engine:
    """The engine of one rank: DeepSpeed, or plain torch where it would have nothing to do."""
    num_micro_batches = train.num_micro_batches // num_ranks
    if not has_dense_weights(model):
        return TorchEngine(model, train.optimizer, encoder_rates, num_micro_batches, device)
    return DeepSpeedEngine(
        model,
        train.optimizer,
        encoder_rates,
        train.engine,
        micro_batch_size=train.micro_batch_size,
        micro_batches_per_rank=num_micro_batches,
        device=device,
    )


def has_dense_weights(model: nn.Module) -> bool:
    """Whether anything is trained outside of sharded tables; DeepSpeed wants something."""
    return any(parameter.requires_grad for parameter in model.parameters())


class DeepSpeedEngine:
    """DeepSpeed over the process group that Ray Train made."""

    def __init__(
        self,
        model: RecommenderModel,
        optimizer_config: OptimizerConfig,
        encoder_rates: Mapping[str, float | None],
        config: EngineConfig,
        *,
        micro_batch_size: int,
        micro_batches_per_rank: int,
        device: torch.device,
    ):
        deepspeed = import_deepspeed(device)
        self.device = device
        self.zero_stage = config.zero_stage
        self.micro_batches_per_rank = micro_batches_per_rank
        self.copies = HostCopies()
        if config.precision == "bf16" and any(hasattr(parameter, "ds_tensor") for parameter in model.parameters()):
            model.bfloat16()  # parts built sharded are in bf16 already, and DeepSpeed then leaves the others as they are
        client_optimizer = build_optimizer(model, optimizer_config, encoder_rates)
        settings = deepspeed_settings(config, optimizer_config.gradient_clipping, micro_batch_size, micro_batches_per_rank)
        for module in model.modules():
            if getattr(module, "is_frozen", False):
                # It calls its parts as often as its rows need, which differs between ranks: ZeRO-3 is to gather it whole, once a call.
                deepspeed.utils.set_z3_leaf_module(module, True)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(model=model, optimizer=client_optimizer, config=settings, dist_init_required=False)
        self.model: RecommenderModel = self.engine.module
        self.tables = TableUpdates(self.model, optimizer_config)
        if self.tables.tables:
            join_norms(self.engine, self.tables)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Call the model through the engine, which gathers what ZeRO-3 has sharded."""
        return self.engine(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """DeepSpeed divides by the micro-batches of a rank and averages over ranks."""
        self.engine.backward(loss)

    def step(self, learning_rate_factor: float) -> None:
        """DeepSpeed updates after the last micro-batch of a rank, and sharded tables with it, where it did not skip the step."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor
        moves_tables = bool(self.tables.tables) and self.engine.is_gradient_accumulation_boundary()
        if moves_tables:
            self.tables.collect(getattr(self.optimizer, "loss_scale", 1.0))
        self.engine.step()
        if moves_tables and self.engine.was_step_applied():
            self.tables.update(float(self.engine.get_global_grad_norm()), learning_rate_factor)

    def snapshot(self) -> Snapshot:
        """This rank's ranges of what is sharded, and its share of the rest; no collective."""
        self._link_states()
        rank, num_ranks = dist.get_rank(), dist.get_world_size()
        return take_snapshot(held_slices(self.model, self.optimizer, rank), count_steps(self._torch_optimizer()), rank, num_ranks, self.copies)

    def _link_states(self) -> None:
        """Stages 1 and 2 of 0.19.8 connect parameters and optimiser states after the first group's update, when the other groups have none yet."""
        if isinstance(getattr(self.optimizer, "_hp_optimizer_states_linked", None), bool):
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer if _is_wrapped(self.optimizer) else self.optimizer

    def restore(self, state: StoredState, prime: Callable[[], Tensor]) -> None:
        """Optimiser states by name, at whatever stage and world size they were written; of what is sharded, this rank's ranges alone are read.

        The sharded states come into being with the first update, so one is made with rate 0 and a gradient of 0; it moves no weight. In bf16 DeepSpeed
        has copied its float32 master weights from weights that were already rounded: they are filled too.
        """
        if self.zero_stage == 0 and not _is_wrapped(self.optimizer):
            make_states(self.model, self.optimizer, state)
        else:
            for _ in range(self.micro_batches_per_rank):
                self.backward(0.0 * prime())
                self.step(learning_rate_factor=0.0)
            self._link_states()
        fill_from(state, held_slices(self.model, self.optimizer, dist.get_rank()))
        set_steps(self._torch_optimizer(), state.num_steps)
        self.tables.num_steps = state.num_steps


def _is_wrapped(optimizer: Any) -> bool:
    """Whether DeepSpeed put an optimiser of its own (ZeRO, bf16) around torch's."""
    return not isinstance(optimizer, torch.optim.AdamW)


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, told which accelerator to use and kept from compiling what is not needed on CPUs."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    # Without this, the first process group on a CPU compiles an extension for most of a minute; it serves inference only.
    __compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def deepspeed_settings(config: EngineConfig, gradient_clipping: float, micro_batch_size: int, micro_batches_per_rank: int) -> dict[str, Any]:
    """Our settings as DeepSpeed's dict."""
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": micro_batches_per_rank,
        "gradient_clipping": gradient_clipping,
        "zero_optimization": {
            "stage": config.zero_stage,
            "reduce_bucket_size": config.bucket_elements,
            "allgather_bucket_size": config.bucket_elements,
            "overlap_comm": False,
        },
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
    }
    if config.zero_stage == 3:
        settings["zero_optimization"] |= {"stage3_prefetch_bucket_size": config.bucket_elements, "stage3_param_persistence_threshold": 1000}
        del settings["zero_optimization"]["allgather_bucket_size"]
    if config.precision == "bf16":
        settings["bf16"] = {"enabled": True}
    return settings
