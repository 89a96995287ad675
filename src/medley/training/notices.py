"""Reasons to end a healthy attempt early: a preemption notice (SIGTERM, or a node that Ray drains), or room for more workers.

All ranks must end after the same step, and no step may wait for the answer: each step starts a tiny exchange of wishes between the processors and reads
that of the step before.
"""

import logging
import signal
import threading
from typing import Any

import torch
import torch.distributed as dist

from medley.training.config import GradientTrainConfig
from medley.training.placement import room_now

logger = logging.getLogger(__name__)

GO_ON, GROW, PREEMPTED = 0, 1, 2
"""Wishes; the largest of all ranks is done."""
GROWTH_SECONDS = 60.0
"""between looks for room; a larger group is only started for room that two looks in a row have seen"""

_terminated = threading.Event()


class AttemptEndedError(Exception):
    """All ranks saved a checkpoint after the same step and end. why: `preempted` or `resized`."""

    def __init__(self, why: str):
        super().__init__(why)
        self.why = why


def install_sigterm() -> None:
    """Take the first SIGTERM as a notice; the second ends the process as before. Call it in a process's main thread."""
    before = signal.getsignal(signal.SIGTERM)

    def notice(signal_number: int, frame: Any) -> None:
        _terminated.set()
        signal.signal(signal.SIGTERM, before)

    _terminated.clear()
    signal.signal(signal.SIGTERM, notice)


def is_preempted() -> bool:
    """Whether this process got SIGTERM, or Ray says that a node of the group will be taken away."""
    if _terminated.is_set():
        return True
    from ray.train.v2._internal.execution.context import get_train_context

    # ray.train.get_preemption_info() says the same, but makes all ranks wait for each other.
    return get_train_context().preemption_context.preemption_info is not None


class Notices:
    """One rank's wishes, and what all ranks have agreed on."""

    def __init__(self, num_ranks: int):
        # The type is wider than what a member of the group gets.
        self.group: Any = dist.new_group(backend="gloo") if num_ranks > 1 else None
        self.grow = threading.Event()
        self.agreed = GO_ON
        self.votes = torch.zeros(1, dtype=torch.int32)
        self.pending: Any = None

    def after_step(self) -> bool:
        """Whether the ranks have agreed to end; all call it once after each step and get the same answer."""
        if self.pending is not None:
            self.pending.wait()
        self.agreed = max(self.agreed, int(self.votes))
        wish = PREEMPTED if is_preempted() else GROW if self.grow.is_set() else GO_ON
        self.votes = torch.tensor([wish], dtype=torch.int32)
        if self.group is not None:
            self.pending = dist.all_reduce(self.votes, op=dist.ReduceOp.MAX, group=self.group, async_op=True)
        return self.agreed != GO_ON

    def end(self) -> AttemptEndedError:
        """What to raise once a checkpoint stands."""
        return AttemptEndedError("preempted" if self.agreed == PREEMPTED else "resized")

    def look_for_room(self, config: GradientTrainConfig, num_ranks: int, seconds: float = GROWTH_SECONDS) -> None:
        """Start a thread (of one rank) that wishes to end when a larger group would find room."""
        larger = [size for size in config.world_sizes if size > num_ranks]
        if larger:
            threading.Thread(target=self._look, args=(config, larger[0] - num_ranks, seconds), name="growth", daemon=True).start()

    def _look(self, config: GradientTrainConfig, num_more: int, seconds: float) -> None:
        seen = 0
        while seen < 2:
            if self.grow.wait(seconds):
                return
            seen = seen + 1 if room_now(config.cpus_per_worker, use_gpu=config.use_gpu) >= num_more else 0
        logger.info("there is room for %d more workers: the group starts again with them after a checkpoint", num_more)
        self.grow.set()
