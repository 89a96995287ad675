"""Writing checkpoints beside the training: a step pays for the copy to CPU memory, a thread of each rank for the rest.

How one is committed: 1. the ranks agree that the one before is done and rank 0 makes the folder, under a temporary name where storage can rename;
2. each rank's thread writes its part, then the part's index; 3. rank 0's thread writes state and scorer, waits until it finds every index, writes
the manifest last and renames the folder; 4. only then old checkpoints are removed.

The ranks meet in `save` and `close` alone, where the step's losses were just exchanged anyway: a collective of the threads would mix with those of the
step, and one a step would have every step wait for the slowest rank. So the threads talk through the storage that they write to.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from medley.index.scorer import Scorer
from medley.manifest import MANIFEST, StagedFolder, join_uri, list_folder, read_json, remove_folder, staged_folder, write_json
from medley.storage import StorageError
from medley.training.checkpoint import CHECKPOINT_KIND, SCORER_FILE, Progress
from medley.training.checkpoint_choice import remove_leftovers, remove_old
from medley.training.checkpoint_parts import Snapshot, StoredState, flush, index_file, part_file, write_part
from medley.training.seat import Seat

logger = logging.getLogger(__name__)

MOST_FAILURES = 3
"""Checkpoints in a row that storage may fail to take; with the last of them training ends."""

APPEARING_SECONDS = 60.0
"""in which rank 0 must find what another rank has written: network file systems look again only now and then"""

ENDING_SECONDS = 60.0
"""for the checkpoint in flight when training ends with an error"""


class CheckpointWriter:
    """One rank's part in writing the checkpoints of a run; every rank has one and calls `save` and `close` alike. Use it as a context.

    Storage that fails costs a checkpoint, not the run: it is logged at once, and raised as StorageError by all ranks when it failed `most_failures` times
    in a row. A checkpoint with a scorer ends an epoch, may be the best and has no second chance: its failure is raised at the next step.
    """

    def __init__(self, folder: str, identity: str, held: dict[str, Any], *, keep: int, seat: Seat, most_failures: int = MOST_FAILURES):
        """held: world size and engine settings, for the record. keep: newest checkpoints kept, beside the best."""
        self.folder = folder
        self.identity = identity
        self.held = held
        self.keep = keep
        self.seat = seat
        self.most_failures = most_failures
        self.num_failures = 0
        self._writing: _Writing | None = None
        if seat.rank == 0:
            remove_leftovers(folder)

    def save(self, snapshot: Callable[[], Snapshot], progress: Progress, scorer: Scorer | None) -> str:
        """Call `snapshot` and have it written; returns the checkpoint's name. Waits for the one before; collective.

        Until the next `save` or `close` the snapshot belongs to the writer.
        """
        self._settle()
        name = f"step-{progress.step:08d}"
        cleaning = ExitStack()
        failure, stage = None, None
        if self.seat.rank == 0:
            try:
                stage = cleaning.enter_context(staged_folder(join_uri(self.folder, name)))
            except StorageError as error:
                failure = error
        failure, stage_uri = self.seat.gather((failure, stage.uri if stage else None))[0]
        if failure is not None:
            self._count(failure, name, must_stand=scorer is not None)
            return name
        # asdict copies: training goes on with `progress`.
        self._writing = _Writing(self, name, stage_uri, stage, cleaning, snapshot(), asdict(progress), scorer)
        self._writing.start()
        return name

    def check(self) -> None:
        """Raise what must not wait for the next `save`; between any two steps, of any rank alone."""
        if self._writing is not None and self._writing.fatal is not None:
            raise self._writing.fatal

    def close(self) -> None:
        """Wait for the last checkpoint; collective."""
        self._settle()

    def _settle(self) -> None:
        """All ranks agree on how the checkpoint in flight ended."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        writing.part_ended.wait()
        if writing.mistake is not None:
            raise writing.mistake
        failure = next((failure for failure in self.seat.gather(writing.failure) if failure is not None), None)
        writing.end_waiting(others_failed=failure is not None)
        writing.join()
        if writing.mistake is not None:
            raise writing.mistake
        if failure is None:
            failure = self.seat.gather(writing.failure)[0]
        if failure is not None and writing.stage is not None and not writing.stage.is_committed:
            with suppress(StorageError):  # another rank may have written there after rank 0 had cleaned
                remove_folder(writing.stage_uri)
        self._count(failure, writing.checkpoint, must_stand=writing.scorer is not None)

    def _count(self, failure: StorageError | None, name: str, *, must_stand: bool) -> None:
        self.num_failures = 0 if failure is None else self.num_failures + 1
        if failure is None:
            return
        if self.seat.rank == 0:
            logger.error("checkpoint %s was not written, failure %d of %d in a row that end training: %s", name, self.num_failures, self.most_failures, failure)
        if must_stand or self.num_failures >= self.most_failures:
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        elif self._writing is not None:
            # Other ranks may be gone: this one finishes what it can without them.
            self._writing.join(ENDING_SECONDS)


class _Writing(threading.Thread):
    """One checkpoint in flight, of one rank. It is a daemon: a process that must end does not wait for storage."""

    def __init__(
        self,
        writer: CheckpointWriter,
        checkpoint: str,
        stage_uri: str,
        stage: StagedFolder | None,
        cleaning: ExitStack,
        snapshot: Snapshot,
        progress: dict[str, Any],
        scorer: Scorer | None,
    ):
        super().__init__(name=f"checkpoint {checkpoint}", daemon=True)
        self.writer = writer
        self.checkpoint = checkpoint
        self.stage_uri = stage_uri
        self.stage = stage
        self.cleaning = cleaning
        self.snapshot = snapshot
        self.progress = progress
        self.scorer = scorer
        self.failure: StorageError | None = None
        self.mistake: BaseException | None = None
        self.part_ended = threading.Event()
        """this rank's part is written, or never will be"""
        self._others_ended = threading.Event()
        self._others_failed = False

    @property
    def fatal(self) -> BaseException | None:
        """What training must not go on with."""
        return self.mistake or (self.failure if self.scorer is not None else None)

    def end_waiting(self, *, others_failed: bool) -> None:
        """Every rank's part is written, or one never will be."""
        self._others_failed = others_failed
        self._others_ended.set()

    def run(self) -> None:
        """Write this rank's part; rank 0 then commits."""
        try:
            with self.cleaning:
                write_part(self.stage_uri, self.writer.seat.rank, self.snapshot.slices)
                self.part_ended.set()
                if self.stage is not None:
                    self._commit(self.stage)
        except StorageError as error:
            self.failure = error
        except OSError as error:
            self.failure = StorageError(f"checkpoint {self.checkpoint} could not be written ({error})", "storage that takes it", "look at the storage")
        except _OtherRankFailedError:
            pass
        except BaseException as error:
            self.mistake = error
        finally:
            if self.failure is not None or self.mistake is not None:
                logger.error("rank %d | checkpoint %s: %s", self.writer.seat.rank, self.checkpoint, self.failure or self.mistake)
            self.part_ended.set()

    def _commit(self, stage: StagedFolder) -> None:
        writer = self.writer
        if self.scorer is not None:
            self.scorer.save(stage.path(SCORER_FILE))
        write_json(stage.path("state.json"), {"progress": self.progress, "num_optimizer_steps": self.snapshot.num_steps, "held": writer.held})
        indices = self._await_parts()
        StoredState(stage.uri, indices, self.snapshot.num_steps)  # every element of every tensor once, or nothing is committed
        known = {part_file(number): index["file"] for number, index in enumerate(indices)}
        counts = {"step": self.progress["step"], "parts": len(indices)}
        flush(*(stage.path(name) for name in list_folder(stage.uri) if name not in known))
        stage.commit(CHECKPOINT_KIND, writer.identity, parents={}, counts=counts, config=writer.held, known=known)
        flush(join_uri(stage.final_uri, MANIFEST), stage.final_uri, writer.folder)
        try:
            remove_old(writer.folder, self.checkpoint, writer.keep, self.progress["best_checkpoint"])
        except StorageError as error:
            logger.warning("old checkpoints were not removed: %s", error)

    def _await_parts(self) -> list[Any]:
        """The index of every rank's part, as soon as all are there."""
        num_ranks, pause_seconds, deadline = self.writer.seat.num_ranks, 0.005, None
        while True:
            names = set(list_folder(self.stage_uri))
            missing = [number for number in range(num_ranks) if index_file(number) not in names]
            if not missing:
                return [read_json(join_uri(self.stage_uri, index_file(number))) for number in range(num_ranks)]
            if self._others_failed:
                raise _OtherRankFailedError
            if self._others_ended.is_set():
                deadline = deadline or time.monotonic() + APPEARING_SECONDS
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"rank {missing[0]} has written its part of checkpoint {self.checkpoint}, and rank 0 does not find it in '{self.stage_uri}'",
                        "storage that all nodes share",
                        "set storage= to a shared folder or an object store",
                    )
            time.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 1.5, 0.5)


class _OtherRankFailedError(Exception):
    """The part of another rank will never come; that rank says why."""
