"""Checkpoints by parameter name: the same file resumes at another world size or ZeRO stage, fills the bundle and starts new runs.

checkpoints/step-00000120/
    weights.safetensors     parameters (float32 master weights) and buffers by name
    optimizer.safetensors   NAME/exp_avg, NAME/exp_avg_sq
    scorer.safetensors      user and item vectors at that moment; only where an epoch ended
    state.json              position in the plan, steps taken, metrics so far, world size, ZeRO stage
    manifest.json           hashes, written last
"""

import logging
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors.torch import load, save

from medley.index.scorer import Scorer
from medley.manifest import (
    MANIFEST,
    exists,
    join_uri,
    list_folder,
    open_storage,
    read_bytes,
    read_json,
    read_manifest,
    remove_folder,
    staged_folder,
    verify_files,
    write_bytes,
    write_json,
)
from medley.schema import InputError
from medley.storage import can_rename
from medley.training.engine import ModelState

logger = logging.getLogger(__name__)

CHECKPOINT_KIND = "checkpoint"

WEIGHTS_FILE = "weights.safetensors"
"""Weights by name: in a checkpoint, in a finished run (its best ones) and in a search (those its winner starts from)."""


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
    """A verified checkpoint in memory."""

    name: str
    model: ModelState
    progress: Progress


def write_checkpoint(folder: str, model: ModelState, progress: Progress, scorer: Scorer | None, held: dict[str, Any], identity: str) -> str:
    """Write one checkpoint, whole or not at all; returns its name. held: world size and engine settings, for the record."""
    name = f"step-{progress.step:08d}"
    with staged_folder(join_uri(folder, name)) as stage:
        write_bytes(stage.path(WEIGHTS_FILE), save({key: value.contiguous() for key, value in model.weights.items()}))
        write_bytes(stage.path("optimizer.safetensors"), save({key: value.contiguous() for key, value in model.optimizer.items()}))
        if scorer is not None:
            scorer.save(stage.path("scorer.safetensors"))
        write_json(stage.path("state.json"), {"progress": asdict(progress), "num_optimizer_steps": model.num_steps, "held": held})
        stage.commit(CHECKPOINT_KIND, identity, parents={}, counts={"step": progress.step}, config=held)
    return name


def read_checkpoint(folder: str, name: str) -> Checkpoint:
    """One checkpoint, every hash verified; a damaged one is an InputError that names the file."""
    uri = join_uri(folder, name)
    verify_files(uri, read_manifest(uri, CHECKPOINT_KIND))
    state = read_json(join_uri(uri, "state.json"))
    weights, optimizer = (load(read_bytes(join_uri(uri, file))) for file in (WEIGHTS_FILE, "optimizer.safetensors"))
    return Checkpoint(name, ModelState(weights, optimizer, state["num_optimizer_steps"]), Progress(**state["progress"]))


def read_newest(folder: str) -> Checkpoint | None:
    """The newest good checkpoint; damaged and unfinished ones are skipped with their reason.

    None only where no checkpoint was ever finished: an empty folder, or one with the lone unfinished checkpoint that a crash leaves on an object store.
    """
    reasons = []
    committed = checkpoint_names(folder)
    unfinished = [name for name in _step_folders(folder) if name not in committed]
    for name in unfinished:
        logger.warning("checkpoint %s counts as absent: it has no %s, so its writing never ended", name, MANIFEST)
        reasons.append(f"{name}: no {MANIFEST}")
    for name in reversed(committed):
        try:
            return read_checkpoint(folder, name)
        except InputError as error:
            logger.warning("checkpoint %s is not used: %s", name, error)
            reasons.append(f"{name}: {error}")
    # A checkpoint begins only after the one before was committed: more than one without a manifest means that manifests were lost.
    if committed or len(unfinished) > 1:
        raise InputError(
            f"no checkpoint of '{folder}' is whole ({'; '.join(reasons)})", "at least one good checkpoint", "restore one, or start anew with --fresh"
        )
    return None


def checkpoint_names(folder: str) -> list[str]:
    """Committed checkpoints, oldest first. Where folders can be renamed, that commits: one that lacks its manifest there was damaged later."""
    names = _step_folders(folder)
    if can_rename(open_storage(folder)[0]):
        return names
    return [name for name in names if exists(join_uri(folder, name, MANIFEST))]


def _step_folders(folder: str) -> list[str]:
    return [name for name in list_folder(folder) if name.startswith("step-") and ".tmp-" not in name]


def remove_old(folder: str, keep: int, best: str | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best."""
    for name in checkpoint_names(folder)[:-keep]:
        if name != best:
            remove_folder(join_uri(folder, name))


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Fill a model with a checkpoint's weights; names and shapes must agree."""
    model.load_state_dict(weights, strict=True)


def load_matching_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> int:
    """Take over the weights of equal name and shape; returns how many."""
    own = model.state_dict()
    matching = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict(matching, strict=False)
    return len(matching)
