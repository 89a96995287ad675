"""Where the time of a rank goes: seconds by phase, by the clock of the processor and, on a GPU, by events that are read when losses are."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Value = TypeVar("Value")

PHASES = ("data", "forward", "backward", "update", "checkpoint", "validation")
"""backward: with the exchange of gradients; update: the rest of that exchange, clipping and the optimiser"""


class StepClock:
    """Adds up seconds by phase. on_beat: called at every change of phase (the watchdog's).

    On a GPU the phases of a step are timed by events on its stream: no step waits for the device. `read` waits for nothing that reading the
    losses has not waited for.
    """

    def __init__(self, device: torch.device | None = None, on_beat: Callable[[], None] | None = None):
        self.uses_events = device is not None and device.type == "cuda"
        self.on_beat = on_beat
        self.seconds: dict[str, float] = defaultdict(float)
        self.events: list[tuple[str, Any, Any]] = []

    def beat(self) -> None:
        """The rank goes on, within a phase."""
        if self.on_beat is not None:
            self.on_beat()

    @contextmanager
    def __call__(self, phase: str, *, on_device: bool = False) -> Iterator[None]:
        """Time a block. on_device: its work is queued on the GPU, where there is one."""
        self.beat()
        if on_device and self.uses_events:
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            yield
            last.record()
            self.events.append((phase, first, last))
            return
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - started

    def waits(self, phase: str, values: Iterable[Value]) -> Iterator[Value]:
        """The same values; the time their iterator takes is the phase's."""
        iterator = iter(values)
        while True:
            with self(phase):
                try:
                    value = next(iterator)
                except StopIteration:
                    return
            yield value

    def read(self) -> dict[str, float]:
        """Seconds by phase so far; call it after the losses of the steps were read."""
        for phase, first, last in self.events:
            self.seconds[phase] += first.elapsed_time(last) / 1000
        self.events.clear()
        return {phase: self.seconds.get(phase, 0.0) for phase in PHASES}
