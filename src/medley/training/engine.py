"""The step: forward, backward, update. The only file that imports deepspeed.

`DeepSpeedEngine` trains over any number of workers at any ZeRO stage; `TorchEngine` is plain AdamW in one process, for the light trials of a
search. Both export and restore weights and optimiser state by parameter name, whole and in float32.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from medley.model import RecommenderModel
from medley.training.config import EngineConfig, OptimizerConfig

OPTIMIZER_STATES = ("exp_avg", "exp_avg_sq")


@dataclass
class ModelState:
    """Weights (parameters and buffers) by name, optimiser states as NAME/STATE, and the number of optimiser steps taken."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    num_steps: int


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

    def export(self) -> ModelState:
        """Whole state on the CPU; every rank must call it."""

    def restore(self, state: ModelState, prime: Callable[[], Tensor]) -> None:
        """Continue from an exported state; weights must already be in the model. prime() runs one forward pass and returns a scalar."""


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
    if room == "encoders":
        rate = encoder_rates[rest.split(".")[0]] or config.learning_rate
        return rate, config.weight_decay if parameter.ndim > 1 else 0.0
    is_table = room in ("item_id", "head") or (room == "users" and "embedding" in rest)
    if is_table:
        return config.table_learning_rate or config.learning_rate, config.table_weight_decay
    return config.learning_rate, config.weight_decay if parameter.ndim > 1 else 0.0


def build_optimizer(model: nn.Module, config: OptimizerConfig, encoder_rates: Mapping[str, float | None]) -> torch.optim.AdamW:
    """torch's AdamW: compiled extensions of DeepSpeed would be built on first use."""
    return torch.optim.AdamW(parameter_groups(model, config, encoder_rates), betas=(0.9, 0.98), eps=1e-8)


class TorchEngine:
    """One process, float32, no sharding."""

    def __init__(self, model: RecommenderModel, config: OptimizerConfig, encoder_rates: Mapping[str, float | None], num_micro_batches: int):
        self.model = model
        self.device = torch.device("cpu")
        self.optimizer = build_optimizer(model, config, encoder_rates)
        self.gradient_clipping = config.gradient_clipping
        self.num_micro_batches = num_micro_batches
        self.num_backwards = 0

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
        nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clipping)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor
        self.optimizer.step()
        self.optimizer.zero_grad()

    def export(self) -> ModelState:
        """Whole state."""
        return _export_plain(self.model, self.optimizer)

    def restore(self, state: ModelState, prime: Callable[[], Tensor]) -> None:
        """Optimiser states by name."""
        _restore_plain(self.model, self.optimizer, state)


def _export_plain(model: nn.Module, optimizer: torch.optim.Optimizer) -> ModelState:
    weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    states: dict[str, Tensor] = {}
    num_steps = 0
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        num_steps = max(num_steps, int(state.get("step", 0)))
        states |= {f"{name}/{key}": state[key].detach().cpu().clone() for key in OPTIMIZER_STATES if key in state}
    return ModelState(weights, states, num_steps)


def _restore_plain(model: nn.Module, optimizer: torch.optim.Optimizer, state: ModelState) -> None:
    for name, parameter in model.named_parameters():
        if f"{name}/{OPTIMIZER_STATES[0]}" in state.optimizer:
            values = {key: state.optimizer[f"{name}/{key}"].to(parameter.device, copy=True) for key in OPTIMIZER_STATES}
            optimizer.state[parameter] = {"step": torch.tensor(float(state.num_steps)), **values}


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
        self.num_backwards = 0
        client_optimizer = build_optimizer(model, optimizer_config, encoder_rates)
        settings = deepspeed_settings(config, optimizer_config.gradient_clipping, micro_batch_size, micro_batches_per_rank)
        for module in model.modules():
            if getattr(module, "is_frozen", False):
                # It calls its parts as often as its rows need, which differs between ranks: ZeRO-3 is to gather it whole, once a call.
                deepspeed.utils.set_z3_leaf_module(module, True)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(model=model, optimizer=client_optimizer, config=settings, dist_init_required=False)
        self.model: RecommenderModel = self.engine.module

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Call the model through the engine, which gathers what ZeRO-3 has sharded."""
        return self.engine(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """DeepSpeed divides by the micro-batches of a rank and averages over ranks."""
        self.engine.backward(loss)

    def step(self, learning_rate_factor: float) -> None:
        """DeepSpeed updates after the last micro-batch of a rank."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor
        self.engine.step()

    def export(self) -> ModelState:
        """Whole state on every rank; collective."""
        if self.zero_stage == 0 and not _is_wrapped(self.optimizer):
            return _export_plain(self.model, self.optimizer)
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        self._link_states()
        weights = {name: buffer.detach().cpu().clone() for name, buffer in self.model.named_buffers() if name in _persistent_buffers(self.model)}
        states: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                weights[name] = safe_get_full_fp32_param(parameter).detach().cpu().clone()
                for key in OPTIMIZER_STATES:
                    value = safe_get_full_optimizer_state(parameter, key)
                    if value is not None:
                        states[f"{name}/{key}"] = value.detach().cpu().clone().view(weights[name].shape)
            else:
                with self._gathered(parameter):
                    weights[name] = parameter.detach().cpu().clone()
        return ModelState(weights, states, self._num_steps())

    def _link_states(self) -> None:
        """Stages 1 and 2 of 0.19.8 connect parameters and optimiser states after the first group's update, when the other groups have none yet."""
        if isinstance(getattr(self.optimizer, "_hp_optimizer_states_linked", None), bool):
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _gathered(self, parameter: nn.Parameter) -> AbstractContextManager[object]:
        import deepspeed

        return deepspeed.zero.GatheredParameters([parameter], enabled=self.zero_stage == 3)

    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer if _is_wrapped(self.optimizer) else self.optimizer

    def _num_steps(self) -> int:
        return max((int(state["step"]) for state in self._torch_optimizer().state.values() if "step" in state), default=0)

    def restore(self, state: ModelState, prime: Callable[[], Tensor]) -> None:
        """Optimiser states by name, at whatever stage and world size they were exported.

        The sharded states come into being with the first update, so one is made with rate 0 and a gradient of 0; it moves no weight.
        """
        if self.zero_stage == 0 and not _is_wrapped(self.optimizer):
            _restore_plain(self.model, self.optimizer, state)
            return
        for _ in range(self.micro_batches_per_rank):
            self.backward(0.0 * prime())
            self.step(learning_rate_factor=0.0)
        self._link_states()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                # In bf16 DeepSpeed copies its float32 master weights from the weights it has already rounded.
                self._set_state(parameter, None, state.weights[name])
            for key in OPTIMIZER_STATES:
                if f"{name}/{key}" in state.optimizer:
                    self._set_state(parameter, key, state.optimizer[f"{name}/{key}"])
        for entry in self._torch_optimizer().state.values():
            if "step" in entry:
                entry["step"] = torch.full_like(entry["step"], float(state.num_steps))

    def _set_state(self, parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
        """Fill one optimiser state of a parameter, or its float32 master weight (key None)."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state, safe_set_local_fp32_param, safe_set_local_optimizer_state

        if self.zero_stage < 3:
            value = value.to(self.device)
            if key is None:
                safe_set_full_fp32_param(parameter, value)
            else:
                safe_set_full_optimizer_state(parameter, value, key)
            return
        # The safe_set_full functions of 0.19.8 fail where the world size does not divide the parameter: set this rank's slice, padded.
        size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()  # type: ignore[attr-defined]  # DeepSpeed's own attribute
        flat = value.flatten()[rank * size : (rank + 1) * size]
        own = nn.functional.pad(flat, (0, size - len(flat))).to(self.device)
        if key is None:
            safe_set_local_fp32_param(parameter, own)
        else:
            safe_set_local_optimizer_state(parameter, own, key)


def _is_wrapped(optimizer: Any) -> bool:
    """Whether DeepSpeed put an optimiser of its own (ZeRO, bf16) around torch's."""
    return not isinstance(optimizer, torch.optim.AdamW)


def _persistent_buffers(model: nn.Module) -> set[str]:
    """Names of the buffers that belong to a state dict."""

    def walk() -> Iterator[str]:
        for prefix, module in model.named_modules():
            for name in module._buffers:
                if name not in module._non_persistent_buffers_set:
                    yield f"{prefix}.{name}" if prefix else name

    return set(walk())


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
