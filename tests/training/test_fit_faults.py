"""Faults of a run through the whole stack: a stopped rank, a preemption notice, a killed worker, other numbers of workers. The result is always the same."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from medley.config import Run
from medley.training.events import read_events
from medley.training.faults import TrainingStoppedError
from medley.training.run import fit

pytestmark = pytest.mark.long

TinyRun = Callable[..., Run]
Finished = tuple[Run, dict[str, Any]]


def losses_of(run: Run) -> list[float]:
    return [loss for epoch in json.loads(Path(run.run_uri, "history.json").read_text()) for loss in epoch["step_losses"]]


def weights_of(run: Run) -> bytes:
    return Path(run.run_uri, "weights.safetensors").read_bytes()


def workers() -> list[psutil.Process]:
    """The training processes of this session."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def send_after(run: Run, step: int, number: signal.Signals, sent: list[int]) -> threading.Thread:
    """A thread that sends a signal to one worker, once a checkpoint of that step or a later one stands."""

    def wait_and_send() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if any(int(path.name[5:]) >= step for path in Path(run.run_uri, "checkpoints").glob("step-????????")):
                sent.append(workers()[-1].pid)
                os.kill(sent[0], number)
                return
            time.sleep(0.005)

    thread = threading.Thread(target=wait_and_send)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("number", "kind", "settings"),
    [(signal.SIGKILL, "workers_lost", {}), (signal.SIGSTOP, "hung", {"watchdog_seconds": 12}), (signal.SIGTERM, "preempted", {})],
    ids=["killed", "stopped", "preempted"],
)
def test_a_run_that_loses_a_worker_ends_with_the_same_losses_and_weights(
    finished_run: Finished, tiny_run: TinyRun, number: signal.Signals, kind: str, settings: dict[str, Any]
) -> None:
    run, sent = tiny_run(f"signal-{number.name.lower()}", checkpoint_every_steps=5, **settings), []
    thread = send_after(run, 10, number, sent)
    fit(run)
    thread.join()
    told = [event["kind"] for event in read_events(run.run_uri) if event["kind"] not in ("training", "failed")]
    assert [name for name in told if name != kind] == ["started", "restarting", "started", "finished"]
    assert kind in told[1 : told.index("restarting")]
    assert not psutil.pid_exists(sent[0])
    assert losses_of(run) == losses_of(finished_run[0])
    assert weights_of(run) == weights_of(finished_run[0])
    if kind == "hung":
        assert [path.name for path in Path(run.run_uri, "log", "stacks").iterdir()] == ["attempt-001-rank-0.txt"]


def test_a_run_without_failures_to_spend_stops_at_a_notice_and_the_same_command_goes_on(finished_run: Finished, tiny_run: TinyRun) -> None:
    run, sent = tiny_run("notice", checkpoint_every_steps=10, max_failures=0), []
    thread = send_after(run, 10, signal.SIGTERM, sent)
    with pytest.raises(TrainingStoppedError) as stopped:
        fit(run)
    thread.join()
    assert stopped.value.exit_code == 75
    last = max(int(path.name[5:]) for path in Path(run.run_uri, "checkpoints").glob("step-????????"))
    (notice,) = [event for event in read_events(run.run_uri) if event["kind"] == "preempted" and event["rank"] == 0]
    assert notice["step"] == last
    fit(run)
    assert losses_of(run) == losses_of(finished_run[0])
    assert weights_of(run) == weights_of(finished_run[0])


def test_a_range_of_workers_takes_what_is_free_and_keeps_the_losses(finished_run: Finished, tiny_run: TinyRun) -> None:
    """2 workers until a notice, then 1, then as many as divide the micro-batches: 4."""
    base, sent = finished_run[0], []
    for sizes, step in ((2, 10), (1, 20), ([1, 8], None)):
        run = tiny_run("elastic-range", checkpoint_every_steps=10, max_failures=0, workers=sizes)
        if step is None:
            fit(run)
            break
        sent.clear()
        thread = send_after(run, step, signal.SIGTERM, sent)
        with pytest.raises(TrainingStoppedError):
            fit(run)
        thread.join()
    started = [event["message"] for event in read_events(run.run_uri) if event["kind"] == "started"]
    assert started == ["2 workers", "1 workers", "4 workers"]
    expected, found = losses_of(base), losses_of(run)
    print(f"2, 1, 4 workers: largest relative difference {max(abs(a / b - 1) for a, b in zip(found, expected, strict=True)):.1e}")
    assert found == pytest.approx(expected, rel=1e-3)
