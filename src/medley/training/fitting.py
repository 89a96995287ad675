"""The driver's side of training: attempts, each one Ray Train run, until one finishes or the failures are spent.

Before each attempt the number of workers is chosen anew (placement.py), after each its end is read (faults.py) and written to the event log. Ray Train
itself starts nothing again: it would take any number of workers, and could not tell kinds of faults apart.
"""

import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medley.config import Run, dump_run
from medley.data.prepared import PreparedData
from medley.manifest import exists, join_uri, remove_folder
from medley.schema import InputError
from medley.training.checkpoint import Progress
from medley.training.config import GradientTrainConfig
from medley.training.events import DriverEvents, Event
from medley.training.faults import EXIT_CODES, TrainingStoppedError, fault_kind, is_dead_process, rank_errors
from medley.training.notices import install_sigterm
from medley.training.placement import choose_num_workers
from medley.training.watchdog import stacks_uri
from medley.training.worker import train_worker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    """How an attempt failed."""

    kind: str
    message: str
    error: BaseException | None
    rank: int | None


def train_on_ray(run: Run, data: PreparedData, identity: str, features: Mapping[str, str]) -> Progress:
    """Train with Ray Train until the run is finished; returns its progress. features: cached encoder → folder of its vectors.

    Raises InputError for the user's mistakes at once, TrainingStoppedError when more attempts failed than train.max_failures, and what a rank raised
    when that is none of the known kinds of fault.
    """
    events, num_failures = DriverEvents(run.run_uri), 0
    events.collect()  # what a driver that was killed left
    while True:
        events.attempt += 1
        num_workers = _choose(run.gradient, events, is_restart=num_failures > 0)
        events.write("started", f"{num_workers} workers")
        ended = _attempt(run, data, identity, features, events, num_workers)
        if not isinstance(ended, Fault):
            progress = Progress(**ended["progress"])
            events.write(ended["ended"], f"{num_workers} workers", step=progress.step)
            if ended["ended"] == "finished":
                return progress
            if ended["ended"] == "resized":
                continue
            ended = Fault("preempted", f"a worker was told to end; the checkpoint of step {progress.step} stands", None, None)
        else:
            events.write(ended.kind, ended.message, rank=ended.rank)
        num_failures += 1
        if ended.kind == "bad_input":
            assert ended.error is not None
            raise ended.error
        if num_failures > run.gradient.max_failures:
            raise _stopped(ended, num_failures, events)
        events.write("restarting", f"failure {num_failures} of at most {run.gradient.max_failures} (train.max_failures)")


def _choose(config: GradientTrainConfig, events: DriverEvents, *, is_restart: bool) -> int:
    try:
        return choose_num_workers(config)
    except InputError as error:
        events.write("no_room", str(error))
        if is_restart:
            raise TrainingStoppedError("workers_lost", f"after a failure the workers find no room again: {error}") from None
        raise


def _stopped(fault: Fault, num_failures: int, events: DriverEvents) -> BaseException:
    if fault.kind not in EXIT_CODES:
        assert fault.error is not None
        return fault.error
    times = f"{num_failures} time{'s' if num_failures > 1 else ''} (train.max_failures={num_failures - 1})"
    events.write("stopped", f"{times}, the last: {fault.kind}")
    remedy = f"the same command goes on from the last checkpoint; what happened is in {join_uri(events.run_uri, 'log', 'events.jsonl')}"
    return TrainingStoppedError(fault.kind, f"training failed {times}, the last: {fault.message}; {remedy}")


def _attempt(run: Run, data: PreparedData, identity: str, features: Mapping[str, str], events: DriverEvents, num_workers: int) -> dict[str, Any] | Fault:
    """One Ray Train run: what rank 0 returned, or how it failed. Its own storage holds nothing that we need and gets a new name each time."""
    name = f"{run.name}-{uuid.uuid4().hex[:8]}"
    settings = {
        "run": dump_run(run),
        "prepared": data.uri,
        "identity": identity,
        "attempt": events.attempt,
        "name": name,
        "features": dict(features),
    }
    try:
        result = _trainer(run, name, settings, num_workers).fit()
        return result.return_value
    except Exception as error:
        return _read_fault(error, events.collect(), run.run_uri, events.attempt, num_workers)
    finally:
        events.collect()
        remove_folder(join_uri(run.storage, "ray", name))


def _trainer(run: Run, name: str, settings: dict[str, Any], num_workers: int) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig, TorchTrainer

    class Trainer(TorchTrainer):
        """Without Ray's cleaner of placement groups, which is for trainers inside trials: it asks the dashboard every second, and a local
        Ray has none. Ours are removed with the job."""

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]
            return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]

    torch_backend: type[Backend] = TorchConfig().backend_cls

    class NoticingBackend(torch_backend):  # type: ignore[misc, valid-type]
        """Ray Train runs our function in a thread; handlers of signals can only be set in the main one, where `execute` runs."""

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(install_sigterm)
            super().on_start(worker_group, backend_config)

    class NoticingConfig(TorchConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return NoticingBackend

    return Trainer(
        train_worker,  # type: ignore[arg-type]  # ray shows type checkers its v1 classes, which v2 replaces at import
        train_loop_config=settings,
        torch_config=NoticingConfig(backend="nccl" if run.gradient.use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=run.gradient.use_gpu, resources_per_worker=_resources(run.gradient)),
        run_config=RunConfig(
            name=name,
            storage_path=join_uri(run.storage, "ray"),
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=2),  # type: ignore[call-arg]
        ),
    )


def _resources(config: GradientTrainConfig) -> dict[str, float]:
    return {"CPU": config.cpus_per_worker} | ({"GPU": 1.0} if config.use_gpu else {})


def _read_fault(error: BaseException, events: list[Event], run_uri: str, attempt: int, num_workers: int) -> Fault:
    """The cause among what the ranks raised and wrote: a rank that loses another fails too, and says less."""
    hung = [event for event in events if event["kind"] == "hung"]
    if hung:
        silent = [rank for rank in range(num_workers) if not exists(stacks_uri(run_uri, attempt, rank))]
        answers = f"; ranks {', '.join(map(str, silent))} wrote no stacks: their processes answer nothing" if silent else ""
        return Fault("hung", hung[0]["message"] + answers, error, silent[0] if silent else hung[0]["rank"])
    rank, cause = min(rank_errors(error).items(), key=lambda entry: (_distance(entry[1]), entry[0]))
    kind = fault_kind(cause)
    return Fault(kind, f"{type(cause).__name__}: {' '.join(str(cause).split())[:1000]}", cause, rank if rank >= 0 else None)


def _distance(error: BaseException) -> int:
    """From the cause of a group's end: known faults, processes that died, unknown errors, and last the complaints about ranks that are gone."""
    kind = fault_kind(error)
    return (2 if is_dead_process(error) else 4) if kind == "workers_lost" else 3 if kind == "failed" else 1
