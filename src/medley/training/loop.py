"""The training loop, one page: the same for end-to-end and cached features, 1 or N workers, any ZeRO stage.

Per global batch: 1. this rank's micro-batches come from the stream; 2. each is scored and its loss summed; 3. the engine averages gradients and
updates; 4. losses are collected without a pause. Per epoch: 5. the catalogue is embedded and ranked on the valid split; 6. a checkpoint
is committed; 7. training stops early or goes on.
"""

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from medley.data.memory import MemoryStream
from medley.data.plan import Plan
from medley.data.stream import BatchStream
from medley.index.embed import embed_all
from medley.index.scorer import Scorer
from medley.losses import LossConfig, batch_loss
from medley.schema import Batch
from medley.training.checkpoint import Progress
from medley.training.checkpoint_writing import CheckpointWriter
from medley.training.config import GradientTrainConfig
from medley.training.engine import Engine, learning_rate_factor
from medley.training.evaluate import EvaluateConfig, Questions, Ranked, VectorRanker, rank_block, summarise, whole_catalogue
from medley.training.faults import LossNotFiniteError
from medley.training.notices import GO_ON, AttemptEndedError, Notices
from medley.training.report import RunLog, peak_memory_megabytes
from medley.training.seat import Seat
from medley.training.timing import StepClock

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """All that one rank trains with."""

    engine: Engine
    stream: BatchStream | MemoryStream
    plan: Plan
    loss: LossConfig
    config: GradientTrainConfig
    evaluate: EvaluateConfig
    questions: Questions
    train_count_N: Tensor
    """how often each item comes in an epoch, as the plan draws rows"""
    seat: Seat
    checkpoints: CheckpointWriter | None
    """None: nothing is saved (light trials)"""
    log: RunLog | None
    clock: StepClock = field(default_factory=StepClock)
    notices: Notices | None = None
    """reasons to end early; None: there are none (light trials)"""

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.epochs * self.plan.num_global_batches


def train(training: Training, progress: Progress) -> Progress:
    """Train from `progress` to the last epoch or an early stop; returns where it ended. After a notice a checkpoint is saved and AttemptEndedError raised."""
    with training.checkpoints or nullcontext():
        while progress.epoch < training.config.epochs and not _is_exhausted(progress, training.config):
            if training.notices is not None and training.notices.agreed != GO_ON:
                raise _ended_early(training)
            scorer = train_epoch(training, progress)
            _save(training, progress, scorer)
    return progress


def train_epoch(training: Training, progress: Progress) -> Scorer:
    """The rest of one epoch and its validation; moves `progress` to the next epoch. Returns the scorer of the model as it is then."""
    started, num_rows, losses = time.monotonic(), 0, []
    earlier = progress.step_losses  # of the same epoch, when it was resumed within
    first_step = progress.step - len(earlier)
    own_micro_batches = training.seat.micro_batches(training.config.num_micro_batches)
    for batches in training.clock.waits("data", training.stream.global_batches(progress.epoch, progress.global_batch, own_micro_batches)):
        num_rows += training.plan.num_rows_in(progress.global_batch)
        losses.append(train_step(training, batches, progress.step))
        if training.checkpoints is not None:
            training.checkpoints.check()
        progress.step += 1
        progress.global_batch += 1
        if progress.step % training.config.log_every_steps == 0:
            recent = _over_ranks(training, progress, losses[-training.config.log_every_steps :])
            _log_step(training, progress, recent, num_rows)
        is_ending = training.notices is not None and training.notices.after_step()
        every = training.config.checkpoint_every_steps
        is_due = is_ending or (every is not None and progress.step % every == 0)
        # After the last step of an epoch its own checkpoint follows.
        if is_due and progress.global_batch < training.plan.num_global_batches:
            progress.step_losses = earlier + _over_ranks(training, progress, losses)
            _save(training, progress, None)
            if is_ending:
                raise _ended_early(training)
    step_losses = earlier + _over_ranks(training, progress, losses)
    train_seconds = time.monotonic() - started
    with training.clock("validation"):
        scorer, metrics = validate(training)
    epoch_record = {
        "epoch": progress.epoch,
        "loss": float(np.mean(step_losses)) if step_losses else None,
        "step_losses": step_losses,
        "first_step": first_step,
        "rows_per_second": num_rows / train_seconds,
        "steps_per_second": len(losses) / train_seconds,
        "train_seconds": train_seconds,
        "validation_seconds": time.monotonic() - started - train_seconds,
        "peak_memory_megabytes": peak_memory_megabytes(),
        "valid": metrics,
    }
    progress.history.append(epoch_record)
    progress.epoch, progress.global_batch, progress.step_losses = progress.epoch + 1, 0, []
    _note_best(progress, metrics.get(training.config.metric))
    _log_epoch(training, progress, epoch_record)
    return scorer


def train_step(training: Training, batches: list[Batch], step: int) -> Tensor:
    """This rank's micro-batches of one global batch; returns their losses (detached) at their places among all micro-batches, zeros elsewhere,
    scaled so that the sum over micro-batches and ranks is the mean per row."""
    engine, plan = training.engine, training.plan
    engine.model.train()
    factor = learning_rate_factor(step, training.num_steps, training.config.optimizer)
    losses = torch.zeros(plan.num_micro_batches, device=engine.device)
    for batch in batches:
        epoch, global_batch, micro_batch = batch.place
        # Every draw of this forward pass follows from the plan, never from the rank or from what was drawn before.
        torch.manual_seed(plan.step_seed(epoch, global_batch, micro_batch))
        with training.clock("forward", on_device=True):
            moved = batch.to(engine.device)
            output = engine.forward(moved)
            loss_sum = batch_loss(training.loss, output, moved, training.train_count_N, plan.num_rows, plan.micro_batch_size)
            share = loss_sum / plan.num_rows_in(global_batch)
        with training.clock("backward", on_device=True):
            # The engine averages over micro-batches and ranks; times their number that is the mean over the rows of the global batch.
            engine.backward(share * plan.num_micro_batches)
        with training.clock("update", on_device=True):
            engine.step(factor)
        losses[micro_batch] = share.detach()
    return losses


def validate(training: Training) -> tuple[Scorer, dict[str, Any]]:
    """Embed the catalogue, rank the valid split; every rank ranks its share of the user blocks and gets the whole result."""
    engine, seat = training.engine, training.seat
    engine.model.eval()

    def forward(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        training.clock.beat()
        return engine.forward(*arguments, **options)

    scorer = embed_all(forward, training.stream, engine.device, engine.model.head.global_bias, seat.rank, seat.num_ranks)
    ranker, groups = VectorRanker.of(scorer, training.questions, training.evaluate), whole_catalogue(len(training.train_count_N))
    k = int(training.config.metric.rpartition("@")[2])
    own = {}
    for block in range(seat.rank, training.questions.num_blocks, seat.num_ranks):
        training.clock.beat()
        own[block] = rank_block(ranker, training.questions, block, groups, k)["all"]
    blocks = {block: values for part in seat.gather(own) for block, values in part.items()}
    return scorer, summarise(Ranked.join([blocks[block] for block in sorted(blocks)]).metrics((k,)))


def _over_ranks(training: Training, progress: Progress, losses: list[Tensor]) -> list[float]:
    """Each step's loss over all ranks (each rank's part is already a share of the whole); `losses` are of the last steps before `progress`.

    A loss that is not finite is a LossNotFiniteError that names its batch. It comes before anything is saved, and only here, where losses are read anyway:
    looking at each step's would make a GPU wait.
    """
    if not losses:
        return []
    stacked = torch.stack(losses)
    if training.seat.num_ranks > 1:
        dist.all_reduce(stacked)
    bad = (~stacked.isfinite()).nonzero()
    if len(bad):
        step, micro_batch = bad[0].tolist()  # the first: what it did to the weights makes all later ones bad
        place = f"epoch {progress.epoch}, global batch {progress.global_batch - len(losses) + step}, micro-batch {micro_batch}"
        error = LossNotFiniteError(
            f"the loss of {place} is {stacked[step, micro_batch].item()}",
            "a finite number",
            "lower train.optimizer.learning_rate or raise loss.temperature, and look at the rows of this batch; training starts again from its last "
            "checkpoint and stops after train.max_failures + 1 times",
        )
        logger.error("rank %d | %s", training.seat.rank, error)
        raise error
    return stacked.sum(dim=1).tolist()


def _note_best(progress: Progress, metric: float | None) -> None:
    value = metric if metric is not None else -1.0
    if progress.best_metric is None or value > progress.best_metric:
        progress.best_metric, progress.best_epoch = value, progress.epoch - 1
        progress.best_checkpoint = f"step-{progress.step:08d}"


def _is_exhausted(progress: Progress, config: GradientTrainConfig) -> bool:
    """Whether `patience` epochs went by without a better metric."""
    return bool(config.patience) and progress.best_epoch is not None and progress.epoch - 1 - progress.best_epoch >= config.patience


def _save(training: Training, progress: Progress, scorer: Scorer | None) -> None:
    """Every rank copies what it holds; it is written while training goes on."""
    if training.checkpoints is None:
        return
    with training.clock("checkpoint"):
        training.checkpoints.save(training.engine.snapshot, progress, scorer)
    if training.log is not None:
        training.log.flush()


def _ended_early(training: Training) -> AttemptEndedError:
    """What to raise after a notice, once the last checkpoint stands; collective."""
    assert training.notices is not None
    if training.checkpoints is not None:
        training.checkpoints.close()
    return training.notices.end()


def _log_step(training: Training, progress: Progress, recent: list[float], num_rows: int) -> None:
    if training.log is None:
        return
    rate = training.config.optimizer.learning_rate * learning_rate_factor(progress.step - 1, training.num_steps, training.config.optimizer)
    values = {"loss": float(np.mean(recent)), "learning_rate": rate, "epoch": progress.epoch}
    training.log.step(progress.step, training.num_steps, values, num_rows, training.clock.read())


def _log_epoch(training: Training, progress: Progress, record: dict[str, Any]) -> None:
    if training.log is None:
        return
    metric = training.config.metric
    values = {name: value for name, value in record.items() if name not in ("valid", "step_losses")} | record["valid"]
    training.log.record("epoch", progress.step, values)
    logger.info(
        "epoch %d/%d | loss %.4f | valid %s %s | %s rows/s | %.1f s + %.1f s validation | peak %.0f MB",
        progress.epoch,
        training.config.epochs,
        record["loss"] or float("nan"),
        metric,
        record["valid"].get(metric),
        f"{record['rows_per_second']:,.0f}",
        record["train_seconds"],
        record["validation_seconds"],
        record["peak_memory_megabytes"],
    )
