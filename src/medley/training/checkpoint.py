"""Checkpoints by parameter name: the same files resume at another world size or ZeRO stage, fill the bundle and start new runs.

checkpoints/step-00000120/
    part-00000.safetensors  what rank 0 owned: slices of parameters (float32 master weights), of optimiser states and of buffers; one such file a rank
    part-00000.json         its index: shapes, places and checksums
    scorer.safetensors      user and item vectors at that moment; only where an epoch ended
    state.json              position in the plan, steps taken, metrics so far, world size, ZeRO stage
    manifest.json           hashes, written last

Written by checkpoint_writing.py, chosen by checkpoint_choice.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medley.manifest import join_uri, read_json
from medley.schema import InputError
from medley.training.checkpoint_parts import Entry, StoredState, index_file, write_safetensors
from medley.training.engine_state import held_weights

CHECKPOINT_KIND = "sliced checkpoint"

WEIGHTS_FILE = "weights.safetensors"
"""Whole weights by name: in a finished run (its best ones) and in a search (those its winner starts from)."""

SCORER_FILE = "scorer.safetensors"


@dataclass
class Progress:
    """Where a run stands: the next global batch is (epoch, global_batch); what was seen so far."""

    epoch: int = 0
    global_batch: int = 0
    step: int = 0
    best_metric: float | None = None
    best_epoch: int | None = None
    best_checkpoint: str | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    """one entry per finished epoch: losses and validation metrics"""
    step_losses: list[float] = field(default_factory=list)
    """losses over all ranks of the steps done in the unfinished epoch; brought up to date where a checkpoint is written within it"""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint; its tensors are read when they are asked for."""

    name: str
    state: StoredState
    progress: Progress


def open_checkpoint(folder: str, name: str, num_parts: int) -> Checkpoint:
    """A checkpoint whose files were verified (`checkpoint_choice.read_checkpoint` does both)."""
    uri = join_uri(folder, name)
    stored = read_json(join_uri(uri, "state.json"))
    indices = [read_json(join_uri(uri, index_file(number))) for number in range(num_parts)]
    return Checkpoint(name, StoredState(uri, indices, stored["num_optimizer_steps"]), Progress(**stored["progress"]))


@torch.no_grad()
def load_weights(model: torch.nn.Module, state: StoredState, rank: int = 0) -> None:
    """Fill a model with a checkpoint's weights, one tensor in memory at a time; names and shapes must agree.

    Of what is sharded already (ZeRO-3, tables), the ranges of this rank alone are read.
    """
    held = list(held_weights(model, rank))
    own, stored = {each.name: each.shape for each in held}, {entry.name: entry.shape for entry in state.weights()}
    if own != stored:
        different = sorted(name for name in {*own, *stored} if own.get(name) != stored.get(name))
        raise InputError(
            f"the checkpoint '{state.folder}' and the model differ in {len(different)} weights ('{different[0]}': {stored.get(different[0], 'absent')} "
            f"and {own.get(different[0], 'absent')})",
            "equal names and shapes",
            "resume with the version of the library that wrote it, or start anew with --fresh",
        )
    for each in held:
        each.values.copy_(state.read(each.name, each.start, each.start + each.values.numel()).view(each.values.shape))


def write_weights(uri: str, state: StoredState, more: Mapping[str, Tensor]) -> None:
    """Write a checkpoint's weights whole, and `more` beside them, as one safetensors file; one tensor in memory at a time."""
    others = [Entry(name, tuple(value.shape), value.dtype) for name, value in more.items()]
    write_safetensors(
        uri, [*(entry for entry in state.weights() if entry.name not in more), *others], lambda name: more[name] if name in more else state.tensor(name)
    )


@torch.no_grad()
def load_matching_weights(model: torch.nn.Module, weights: dict[str, Tensor]) -> int:
    """Take over the weights of equal name and shape, of what is sharded already this rank's ranges; returns how many."""
    held = held_weights(model, torch.distributed.get_rank() if torch.distributed.is_initialized() else 0)
    matching = [each for each in held if each.name in weights and tuple(weights[each.name].shape) == each.shape]
    for each in matching:
        own = weights[each.name].flatten()[each.start : each.start + each.values.numel()]
        each.values.copy_(own.view(each.values.shape))
    return len(matching)
