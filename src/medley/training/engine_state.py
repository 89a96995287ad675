"""What this rank holds of the training state, by parameter name: copied out for a checkpoint, filled in from one. No collective, and whole tensors only
where nothing is sharded.

ZeRO 1 and 2 give a rank a range of the parameters of each group, laid end to end: of a parameter it holds a range or nothing. ZeRO-3 cuts every
parameter into as many ranges as there are ranks, the last ones padded. The float32 master weights and the optimiser's states are cut alike. Of a
sharded table a rank holds blocks of rows.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medley.training.checkpoint_parts import Snapshot, StoredState, TensorSlice
from medley.training.sharded_table import ShardedTable

OPTIMIZER_STATES = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class HeldSlice:
    """A range of a tensor as it lies in this rank's memory: writing to `values` changes the training."""

    name: str
    """of a parameter or buffer; NAME/STATE for an optimiser's state of a parameter"""
    shape: tuple[int, ...]
    """of the whole tensor"""
    start: int
    """place of the first element in the flat tensor"""
    values: Tensor
    """of any shape and layout; its elements, row by row, are the range"""
    is_on_every_rank: bool


def held_slices(model: nn.Module, optimizer: Any, rank: int) -> Iterator[HeldSlice]:
    """All that this rank holds: weights (float32 masters of what is trained), states of the optimiser, buffers.

    optimizer: torch's, or the ZeRO optimiser that DeepSpeed put around it.
    """
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_tensor"):
            yield from _held_at_stage_3(name, parameter, optimizer, rank)
        elif hasattr(parameter, "_hp_mapping"):
            yield from _held_at_stage_1_and_2(name, parameter)
        else:
            yield HeldSlice(name, tuple(parameter.shape), 0, parameter.detach(), True)
            states = optimizer.state.get(parameter, {}) if parameter.requires_grad and isinstance(optimizer, torch.optim.Optimizer) else {}
            yield from (HeldSlice(f"{name}/{key}", tuple(parameter.shape), 0, states[key], True) for key in OPTIMIZER_STATES if key in states)
    yield from _held_rows(model)
    yield from _held_buffers(model)


def held_weights(model: nn.Module, rank: int) -> Iterator[HeldSlice]:
    """The weights alone, in the model's own precision, before an engine has made masters of them; also of a model that is built sharded."""
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_tensor"):
            yield _own_range(name, parameter, parameter.ds_tensor.detach().flatten(), rank)
        else:
            yield HeldSlice(name, tuple(parameter.shape), 0, parameter.detach(), True)
    yield from (rows for rows in _held_rows(model) if "/" not in rows.name)
    yield from _held_buffers(model)


def _held_at_stage_1_and_2(name: str, parameter: nn.Parameter) -> Iterator[HeldSlice]:
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed's own attribute
    if mapping is None:
        return
    start = mapping.lp_fragment_address.start
    yield HeldSlice(name, tuple(parameter.shape), start, mapping.hp_fragment.detach(), False)
    states = mapping.optim_fragment or {}
    yield from (HeldSlice(f"{name}/{key}", tuple(parameter.shape), start, states[key].detach(), False) for key in OPTIMIZER_STATES if key in states)


def _held_at_stage_3(name: str, parameter: nn.Parameter, optimizer: Any, rank: int) -> Iterator[HeldSlice]:
    if not parameter.requires_grad:
        yield _own_range(name, parameter, parameter.ds_tensor.detach().flatten(), rank)  # type: ignore[attr-defined]  # DeepSpeed's own attribute
        return
    for key in (None, *OPTIMIZER_STATES):
        padded, _ = optimizer._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=key)
        yield _own_range(f"{name}/{key}" if key else name, parameter, padded.detach(), rank)


def _own_range(name: str, parameter: Any, padded: Tensor, rank: int) -> HeldSlice:
    """The range that ZeRO-3 gives a rank; the last one may be shorter than its memory."""
    start = min(rank * padded.numel(), parameter.ds_numel)
    return HeldSlice(name, tuple(parameter.ds_shape), start, padded[: parameter.ds_numel - start], False)


def _held_rows(model: nn.Module) -> Iterator[HeldSlice]:
    """Of sharded tables; a rank without rows says so with an empty range."""
    for prefix, table in model.named_modules():
        if isinstance(table, ShardedTable):
            name, shape = f"{prefix}.weight", (table.owners.num_rows, table.width)
            yield HeldSlice(name, shape, 0, table.weight_own[:0], False)
            for own in table.slices():
                width = own.values.shape[1]
                key = f"{name}/{own.state}" if own.state else name
                yield HeldSlice(key, (table.owners.num_rows, width), own.first_row * width, own.values.detach(), False)


def _held_buffers(model: nn.Module) -> Iterator[HeldSlice]:
    """Those that belong to a state dict."""
    kept = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in module._buffers
        if name not in module._non_persistent_buffers_set
    }
    yield from (HeldSlice(name, tuple(buffer.shape), 0, buffer.detach(), True) for name, buffer in model.named_buffers() if name in kept)


class HostCopies:
    """Copies on the CPU whose memory is used again by the next copy of the same range: fresh memory costs four times the copying itself."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, int], Tensor] = {}

    def copy(self, held: HeldSlice) -> Tensor:
        """The elements row by row, as (numel,); good until the next copy of this range."""
        key, values = (held.name, held.start), held.values
        buffer = self.buffers.get(key)
        if buffer is None or buffer.shape != values.shape or buffer.dtype != values.dtype:
            buffer = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.device.type == "cuda")
            self.buffers[key] = buffer
        return buffer.copy_(values).view(-1)


def take_snapshot(held: Iterable[HeldSlice], num_steps: int, rank: int, num_ranks: int, copies: HostCopies) -> Snapshot:
    """Copies of what this rank is to write: its own ranges, and its share of what every rank holds."""
    slices = list(held)
    owners = _deal({each.name: each.values.nbytes for each in slices if each.is_on_every_rank}, num_ranks)
    own = [each for each in slices if owners.get(each.name, rank) == rank]
    return Snapshot([TensorSlice(each.name, each.shape, each.start, copies.copy(each)) for each in own], num_steps)


def _deal(sizes: dict[str, int], num_ranks: int) -> dict[str, int]:
    """Name → rank that writes it: the largest first, each to the rank with the least so far. Every rank comes to the same."""
    loads, owners = [0] * num_ranks, {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += sizes[name]
    return owners


def fill_from(state: StoredState, held: Iterable[HeldSlice]) -> None:
    """Fill masters and states of the optimiser. Weights that every rank holds whole are in the model already."""
    for each in held:
        if each.name in state and not (each.is_on_every_rank and "/" not in each.name):
            values = state.read(each.name, each.start, each.start + each.values.numel())
            each.values.copy_(values.view(each.values.shape))


def count_steps(optimizer: torch.optim.Optimizer) -> int:
    """Steps that torch's optimiser has taken."""
    return max((int(state["step"]) for state in optimizer.state.values() if "step" in state), default=0)


def set_steps(optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    """Have every state continue after `num_steps`."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = torch.full_like(state["step"], float(num_steps))


def make_states(model: nn.Module, optimizer: torch.optim.Optimizer, state: StoredState) -> None:
    """The states that torch's AdamW makes in its first step, for unsharded parameters of which `state` has them: zeros, to be filled."""
    for name, parameter in model.named_parameters():
        if f"{name}/{OPTIMIZER_STATES[0]}" in state:
            values = {key: torch.zeros_like(parameter, memory_format=torch.preserve_format) for key in OPTIMIZER_STATES}
            optimizer.state[parameter] = {"step": torch.tensor(float(state.num_steps), device=parameter.device), **values}
