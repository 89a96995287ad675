"""What a run writes down while it goes: one line per logged step, JSONL and TensorBoard, and where the time went."""

import json
import logging
import resource
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medley.manifest import join_uri, write_bytes
from medley.training.timing import PHASES

logger = logging.getLogger(__name__)

NOT_TRAINING = ("checkpoint", "validation")
"""Phases that are no part of a step."""


class RunLog:
    """Rank 0's log of a run. Records are kept locally and copied to `log/` at every flush, so that any storage works."""

    def __init__(self, run_uri: str, attempt: str):
        from tensorboardX import SummaryWriter

        self.run_uri = run_uri
        self.attempt = attempt
        self.folder = tempfile.TemporaryDirectory(prefix="medley-log-")
        self.board = SummaryWriter(self.folder.name, write_to_disk=True)
        self.lines: list[str] = []
        self.started = time.monotonic()
        self.since = Moment(self.started, 0, 0, dict.fromkeys(PHASES, 0.0))

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One record: `kind` is step or epoch; numbers go to TensorBoard too."""
        entry = {"kind": kind, "step": step, "seconds": round(time.monotonic() - self.started, 3), **values}
        self.lines.append(json.dumps(entry))
        for name, value in values.items():
            if isinstance(value, int | float):
                self.board.add_scalar(f"{kind}/{name.replace('@', '_at_')}", value, step)

    def step(self, step: int, num_steps: int, values: dict[str, float], num_rows: int, phase_seconds: Mapping[str, float]) -> None:
        """One logged step: `values` and, since the record before, throughput and the share of each phase.

        num_rows: of all ranks so far in this epoch; phase_seconds: of this rank so far.
        """
        now = Moment(time.monotonic(), step, num_rows, dict(phase_seconds))
        measured = self.since.until(now)
        self.since = now
        self.record("step", step, {**values, **measured, "peak_memory_megabytes": peak_memory_megabytes()})
        shares = " ".join(f"{phase} {measured[f'{phase}_share']:.0%}" for phase in PHASES if measured[f"{phase}_share"] >= 0.005)
        logger.info(
            "step %d/%d | loss %.4f | %.1f ms | %s rows/s | lr %.1e | %s",
            step,
            num_steps,
            values["loss"],
            measured["step_milliseconds"],
            f"{measured['rows_per_second']:,.0f}",
            values["learning_rate"],
            shares,
        )

    def summary(self, step: int, phase_seconds: Mapping[str, float]) -> None:
        """Where this attempt's time went, as the last record and line; `other`: Python between the phases, logs, waiting for the first batches."""
        total = time.monotonic() - self.started
        seconds = {**phase_seconds, "other": max(0.0, total - sum(phase_seconds.values()))}
        self.record("summary", step, {"total_seconds": total, **{f"{phase}_seconds": value for phase, value in seconds.items()}})
        logger.info("time | %.1f s | %s", total, " | ".join(f"{phase} {value:.1f} s ({value / total:.0%})" for phase, value in seconds.items()))

    def flush(self) -> None:
        """Copy everything written so far to the run folder."""
        self.board.flush()
        write_bytes(join_uri(self.run_uri, "log", f"{self.attempt}.jsonl"), ("\n".join(self.lines) + "\n").encode())
        for path in Path(self.folder.name).iterdir():
            write_bytes(join_uri(self.run_uri, "log", f"{self.attempt}.{path.name}"), path.read_bytes())

    def close(self) -> None:
        """Flush and remove the local copy."""
        self.flush()
        self.board.close()
        self.folder.cleanup()


@dataclass(frozen=True)
class Moment:
    """A moment of a run, to measure from one to the next."""

    at: float
    """monotonic seconds"""
    step: int
    num_rows: int
    """so far in the epoch"""
    phase_seconds: Mapping[str, float]

    def until(self, later: "Moment") -> dict[str, float]:
        """Throughput and shares of the time between two records; checkpoints and validation count in the shares but not in the throughput."""
        total = max(later.at - self.at, 1e-9)
        spent = {phase: later.phase_seconds[phase] - self.phase_seconds[phase] for phase in PHASES}
        training = max(total - sum(spent[phase] for phase in NOT_TRAINING), 1e-9)
        num_rows = later.num_rows - self.num_rows if later.num_rows > self.num_rows else later.num_rows  # a new epoch counts from 0
        num_steps = max(1, later.step - self.step)
        return {
            "rows_per_second": num_rows / training,
            "step_milliseconds": 1000 * training / num_steps,
            **{f"{phase}_share": value / total for phase, value in spent.items()},
        }


def peak_memory_megabytes() -> float:
    """Largest resident memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
