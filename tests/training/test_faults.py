"""What ends training, told apart: kinds of faults, the event log, the watchdog in a process of its own, the number of workers."""

import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError

from medley.config import make_run
from medley.schema import InputError
from medley.storage import StorageError
from medley.training.config import GradientTrainConfig
from medley.training.events import DriverEvents, RankEvents, read_events
from medley.training.faults import HUNG_EXIT_CODE, LossNotFiniteError, TrainingStoppedError, fault_kind, rank_errors
from medley.training.fitting import _read_fault
from medley.training.placement import check_workers, choose_num_workers
from medley.training.watchdog import stacks_uri

NAN = LossNotFiniteError("the loss of epoch 0 is nan", "a finite number", "look")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InputError("got", "wanted", "do"), "bad_input"),
        (NAN, "not_finite"),
        (StorageError("storage failed to write 'x' ([Errno 28] No space left on device)", "room", "free some"), "disk_full"),
        (StorageError("storage failed to write 'x' (AWS Error 503)", "an answer", "again"), "storage"),
        (RayActorError(), "workers_lost"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4242"), "workers_lost"),
        (ZeroDivisionError("division by zero"), "failed"),
    ],
)
def test_each_error_has_its_kind(error: Exception, kind: str) -> None:
    assert fault_kind(error) == kind


def test_our_errors_cross_processes() -> None:
    for error in (NAN, TrainingStoppedError("hung", "rank 1 hung")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))


def group_error(**failures: BaseException) -> BaseException:
    error = RuntimeError("training failed")
    error.worker_failures = {int(rank.removeprefix("rank_")): failure for rank, failure in failures.items()}  # type: ignore[attr-defined]
    return error


def wrapped(cause: BaseException) -> BaseException:
    error = RuntimeError("a worker failed")
    error.__cause__ = cause
    return error


def test_the_cause_is_chosen_before_what_follows_from_it(tmp_path: Path) -> None:
    lost_peer = RuntimeError("Connection closed by peer")
    fault = _read_fault(group_error(rank_0=lost_peer, rank_1=wrapped(NAN)), [], str(tmp_path), 1, 2)
    assert (fault.kind, fault.rank, fault.error) == ("not_finite", 1, NAN)
    fault = _read_fault(group_error(rank_0=lost_peer, rank_1=RayActorError()), [], str(tmp_path), 1, 2)
    assert fault.kind == "workers_lost"
    fault = _read_fault(group_error(rank_0=ZeroDivisionError("division by zero"), rank_1=lost_peer), [], str(tmp_path), 1, 2)
    assert (fault.kind, fault.rank) == ("failed", 0)
    fault = _read_fault(group_error(rank_0=ZeroDivisionError("division by zero"), rank_1=RayActorError()), [], str(tmp_path), 1, 2)
    assert (fault.kind, fault.rank) == ("workers_lost", 1)
    assert rank_errors(ValueError("the group")).keys() == {-1}


def test_a_rank_without_stacks_is_named_as_the_one_that_hangs(tmp_path: Path) -> None:
    place = Path(stacks_uri(str(tmp_path), 3, 0))
    place.parent.mkdir(parents=True)
    place.write_text("Thread 1")
    events = [{"kind": "hung", "rank": 0, "message": "no progress for 20 s"}]
    fault = _read_fault(group_error(rank_0=RayActorError()), events, str(tmp_path), 3, 2)
    assert (fault.kind, fault.rank) == ("hung", 1)
    assert fault.message == "no progress for 20 s; ranks 1 wrote no stacks: their processes answer nothing"


def test_events_of_driver_and_ranks_end_in_one_log_in_order(tmp_path: Path) -> None:
    run_uri = str(tmp_path)
    driver = DriverEvents(run_uri)
    driver.attempt += 1
    driver.write("started", "2 workers")
    RankEvents(run_uri, 1, 0).write("training", "starts", step=0)
    RankEvents(run_uri, 1, 1).write("hung", "no progress", step=7)
    assert [event["kind"] for event in read_events(run_uri)] == ["started", "training", "hung"]
    # A new driver, as after a crash, takes over what the ranks left and counts attempts on.
    driver = DriverEvents(run_uri)
    driver.collect()
    assert driver.attempt == 1
    assert driver.collect() == []
    assert [(event["kind"], event["attempt"], event["rank"], event["step"]) for event in read_events(run_uri)] == [
        ("started", 1, None, None),
        ("training", 1, 0, 0),
        ("hung", 1, 1, 7),
    ]
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == ["events.jsonl"]


def test_the_events_of_the_attempt_are_returned_once(tmp_path: Path) -> None:
    driver = DriverEvents(str(tmp_path))
    driver.attempt += 1
    RankEvents(str(tmp_path), 1, 1).write("hung", "no progress", step=7)
    assert [event["kind"] for event in driver.collect()] == ["hung"]
    assert driver.collect() == []


HANGING = """
import sys, time
from medley.training import watchdog
watchdog.GRACE_SECONDS = 0.1
def wait_for_ever():
    time.sleep(60)
with watchdog.Watchdog(0.5, sys.argv[1], lambda message: print(message, flush=True)) as dog:
    for _ in range(10):
        time.sleep(0.1)
        dog.beat()
    print("beats", flush=True)
    wait_for_ever()
"""


def test_a_process_without_beats_writes_its_stacks_and_ends_with_the_code_of_a_hang(tmp_path: Path) -> None:
    stacks = tmp_path / "stacks" / "rank.txt"
    done = subprocess.run([sys.executable, "-c", HANGING, str(stacks)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == HUNG_EXIT_CODE, done.stderr
    first, message = done.stdout.splitlines()
    assert first == "beats"
    assert message.startswith("no progress for 0.")
    assert "in wait_for_ever" in stacks.read_text()


@pytest.mark.parametrize(("workers", "sizes"), [(2, [2]), ((1, 4), [1, 2, 4]), ((3, 5), [4]), (3, [])])
def test_world_sizes_are_the_numbers_that_divide(workers: int | tuple[int, int], sizes: list[int]) -> None:
    assert GradientTrainConfig(workers=workers, num_micro_batches=4).world_sizes == sizes


@pytest.mark.parametrize("workers", [0, [2, 1], [1, 2, 3], "two", True, [0, 4]])
def test_workers_of_another_form_are_refused(workers: object) -> None:
    with pytest.raises(InputError, match=r"'train.workers' is .*; expected a number of workers of at least 1, or \[min, max\] of them; "):
        make_run({"name": "one", "train": {"workers": workers}}, "test")


def cluster(monkeypatch: pytest.MonkeyPatch, machines: list[int], free: float) -> None:
    """A cluster whose machines have so many CPUs, of which so many are free in all."""
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": float(cpus)}} for cpus in machines])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(sum(machines))})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": free})


@pytest.mark.parametrize(("workers", "free", "chosen"), [((1, 8), 8, 8), ((1, 8), 7, 4), ((1, 3), 8, 2), (2, 2, 2)])
def test_the_most_workers_that_divide_and_find_room_are_chosen(
    workers: int | tuple[int, int], free: float, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(monkeypatch, [8], free)
    assert choose_num_workers(GradientTrainConfig(workers=workers, num_micro_batches=8), settle_seconds=0) == chosen


def test_what_is_missing_is_said_when_other_jobs_hold_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, [8], 3)
    with pytest.raises(InputError, match=r"asks for 4 workers of 1 CPU; .* room for 3 .*; expected room for 1 more; wait until other jobs end"):
        choose_num_workers(GradientTrainConfig(workers=4, num_micro_batches=4), wait_seconds=0)


def test_a_worker_must_fit_on_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, [1, 1, 1], 3)
    with pytest.raises(InputError, match="asks for 1 workers of 2 CPU, and the machines of the cluster have room for 0; "):
        check_workers(GradientTrainConfig(workers=1, cpus_per_worker=2))


def test_all_ranks_of_one_end_after_the_step_that_follows_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    from medley.training import notices

    monkeypatch.setattr(notices, "_terminated", SimpleNamespace(is_set=lambda: False))
    monkeypatch.setattr(notices, "is_preempted", lambda: notices._terminated.is_set())
    alone = notices.Notices(1)
    assert [alone.after_step(), alone.after_step()] == [False, False]
    monkeypatch.setattr(notices, "_terminated", SimpleNamespace(is_set=lambda: True))
    assert [alone.after_step(), alone.after_step()] == [False, True]
    assert alone.end().why == "preempted"
