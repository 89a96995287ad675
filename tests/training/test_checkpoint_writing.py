"""Writing beside the training: what a step waits for, what a failing storage costs, and that all ranks agree on it."""

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medley import manifest
from medley.index.scorer import Scorer
from medley.storage import StorageError
from medley.training import checkpoint_writing
from medley.training.checkpoint import Progress
from medley.training.checkpoint_choice import checkpoint_names, read_checkpoint, read_newest
from medley.training.checkpoint_parts import Snapshot
from medley.training.checkpoint_writing import CheckpointWriter
from medley.training.seat import Seat
from tests.training.rank_threads import IDENTITY, on_ranks, snapshot_of

SCORER = Scorer.of_items(torch.ones(2), 3)
OnOpen = Callable[[Callable[[str], None]], None]


class WatchedStorage:
    """A file system that says which file it is about to open for writing."""

    def __init__(self, filesystem: Any, on_open: Callable[[str], None]):
        self.filesystem, self.on_open = filesystem, on_open

    def __getattr__(self, name: str) -> Any:
        return getattr(self.filesystem, name)

    def open_output_stream(self, path: str) -> Any:
        self.on_open(path)
        return self.filesystem.open_output_stream(path)


@pytest.fixture
def on_open(monkeypatch: pytest.MonkeyPatch) -> OnOpen:
    """on_open(function): from here on function(path) is called before a file is written; what it raises the storage raises."""
    open_storage = manifest.open_storage

    def watch(function: Callable[[str], None]) -> None:
        def watched(uri: str) -> tuple[Any, str]:
            filesystem, path = open_storage(uri)
            return WatchedStorage(filesystem, function), path

        monkeypatch.setattr(manifest, "open_storage", watched)

    return watch


def full_disk(path: str) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", path)


def writer_of(folder: Path, seat: Any, keep: int = 9) -> CheckpointWriter:
    return CheckpointWriter(str(folder), IDENTITY, {}, keep=keep, seat=seat)


def save(writer: CheckpointWriter, step: int, scorer: Scorer | None = None) -> str:
    return writer.save(lambda: snapshot_of(step, writer.seat.rank, writer.seat.num_ranks), Progress(step=step), scorer)


def test_training_goes_on_while_a_checkpoint_is_written_and_the_next_one_waits_before_it_takes_its_snapshot(tmp_path: Path, on_open: OnOpen) -> None:
    may_write, taken = threading.Event(), []
    on_open(lambda path: may_write.wait(30) and None)

    def snapshot(step: int) -> Snapshot:
        taken.append(step)
        return snapshot_of(step)

    with writer_of(tmp_path, Seat(0, 1)) as writer:
        writer.save(lambda: snapshot(2), Progress(step=2), None)
        writer.check()
        assert checkpoint_names(str(tmp_path)) == []
        second = threading.Thread(target=lambda: writer.save(lambda: snapshot(4), Progress(step=4), None))
        second.start()
        second.join(0.1)
        assert second.is_alive()
        assert taken == [2]
        may_write.set()
        second.join()
        assert taken == [2, 4]
    assert checkpoint_names(str(tmp_path)) == ["step-00000002", "step-00000004"]


def test_a_checkpoint_keeps_the_progress_of_its_moment(tmp_path: Path, on_open: OnOpen) -> None:
    may_write, progress = threading.Event(), Progress(step=2, history=[{"loss": 1.0}])
    on_open(lambda path: may_write.wait(30) and None)
    with writer_of(tmp_path, Seat(0, 1)) as writer:
        writer.save(lambda: snapshot_of(2), progress, None)
        progress.step = 3
        progress.history[0]["loss"] = 9.0
        may_write.set()
    assert read_checkpoint(str(tmp_path), "step-00000002").progress == Progress(step=2, history=[{"loss": 1.0}])


def test_a_checkpoint_is_there_as_soon_as_the_last_rank_has_written_without_any_further_step(tmp_path: Path) -> None:
    def work(seat: Any) -> bool:
        writer = writer_of(tmp_path, seat)
        save(writer, 2)
        assert writer._writing is not None
        writer._writing.join(20)
        is_there = not writer._writing.is_alive()
        writer.close()
        return is_there

    assert on_ranks(3, work) == [True] * 3
    assert checkpoint_names(str(tmp_path)) == ["step-00000002"]


@pytest.mark.parametrize("failing", ["part-00001.safetensors", "part-00000.json", "state.json", "manifest.json"])
def test_storage_that_fails_costs_checkpoints_until_three_in_a_row_end_training_on_all_ranks(tmp_path: Path, on_open: OnOpen, failing: str) -> None:
    steps_that_fail = {4, 6, 10, 12, 14}

    def fail(path: str) -> None:
        if failing in path and any(f"step-{step:08d}" in path for step in steps_that_fail):
            full_disk(path)

    on_open(fail)
    reached: dict[int, int] = {}

    def work(seat: Any) -> None:
        with writer_of(tmp_path, seat) as writer:
            for step in range(2, 100, 2):
                save(writer, step)
                reached[seat.rank] = step

    for error in on_ranks(2, work):
        assert isinstance(error, StorageError)
        assert "No space left on device" in str(error)
    assert reached == {0: 14, 1: 14}, "the third failure in a row, of step 14, is known when the next one is due"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000008"]
    newest = read_newest(str(tmp_path))
    assert newest is not None
    assert newest.name == "step-00000008"


def check_when_written(writer: CheckpointWriter) -> None:
    assert writer._writing is not None
    writer._writing.join()
    writer.check()


def test_a_failed_checkpoint_at_the_end_of_an_epoch_is_raised_at_the_next_step(tmp_path: Path, on_open: OnOpen) -> None:
    on_open(lambda path: full_disk(path) if "scorer" in path else None)

    def steps() -> None:
        with writer_of(tmp_path, Seat(0, 1)) as writer:
            save(writer, 2)
            save(writer, 4, SCORER)
            check_when_written(writer)

    with pytest.raises(StorageError, match="No space left on device"):
        steps()
    assert checkpoint_names(str(tmp_path)) == ["step-00000002"]


def test_a_mistake_of_ours_is_raised_at_the_next_step_and_leaves_nothing(tmp_path: Path) -> None:
    def steps() -> None:
        with writer_of(tmp_path, Seat(0, 1)) as writer:
            writer.save(lambda: snapshot_of(2, rank=0, num_ranks=3), Progress(step=2), None)
            check_when_written(writer)

    with pytest.raises(AssertionError, match="'mix.weight' ends at 7"):
        steps()
    assert not list(tmp_path.iterdir())


def test_an_error_in_training_lets_the_checkpoint_in_flight_end(tmp_path: Path) -> None:
    def work(seat: Any) -> None:
        with writer_of(tmp_path, seat) as writer:
            save(writer, 2)
            raise ValueError(f"rank {seat.rank}")

    assert [str(error) for error in on_ranks(2, work)] == ["rank 0", "rank 1"]
    assert checkpoint_names(str(tmp_path)) == ["step-00000002"]


def test_storage_that_the_nodes_do_not_share_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list_folder = checkpoint_writing.list_folder
    monkeypatch.setattr(checkpoint_writing, "list_folder", lambda uri: [name for name in list_folder(uri) if "00001" not in name])
    monkeypatch.setattr(checkpoint_writing, "APPEARING_SECONDS", 0.1)

    def work(seat: Any) -> None:
        with writer_of(tmp_path, seat) as writer:
            save(writer, 2, SCORER)

    for error in on_ranks(2, work):
        assert isinstance(error, StorageError)
        assert "rank 1 has written its part of checkpoint step-00000002, and rank 0 does not find it" in str(error)
        assert error.remedy == "set storage= to a shared folder or an object store"
    assert not list(tmp_path.iterdir())
