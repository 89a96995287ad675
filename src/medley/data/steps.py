"""Steps of `prepare`: each a list of tasks, each task a file; what an interrupted run has done is not done again."""

import json
import logging
import os
import posixpath
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import ray
from ray.exceptions import RayTaskError

from medley.data.partitions import read_part
from medley.data.validate import Quarantine
from medley.manifest import StagedFolder, exists, hash_file, join_uri, open_storage, read_bytes, write_bytes
from medley.schema import InputError
from medley.storage import StorageError, beside_uri, can_rename, storage_failures

logger = logging.getLogger(__name__)

Report = dict[str, Any]
"""What a task says of its file, in JSON: `offsets`, `size_bytes` and `sha256` as write_parts returns them, figures, `quarantine` (Quarantine.as_json)"""


class Steps:
    """Runs steps in Ray tasks, or in this process (is_inline): tiny data sets would spend more on Ray than on themselves."""

    def __init__(self, work_uri: str, quarantine: Quarantine, is_inline: bool):
        self.work_uri = work_uri
        self.quarantine = quarantine
        self.is_inline = is_inline
        self.has_failed_task = False

    def uri(self, step: str, number: int) -> str:
        """Where the file of a task stands."""
        return join_uri(self.work_uri, step, f"{number:05d}")

    def files(self, step: str, reports: Sequence[Report]) -> "StepFiles":
        """The files of a finished step, to be read by the tasks of another."""
        return StepFiles(self.work_uri, step, [report["offsets"] for report in reports])

    def run(self, step: str, function: Callable[..., Report], tasks: Sequence[tuple[Any, ...]], *shared: Any, inline: bool = True) -> list[Report]:
        """The report of each task, in order, their quarantine merged in that order: function(uri of its file, *task, *shared).

        A task whose report and file are there from an earlier run is not run again. inline=False: in Ray tasks always.
        """
        started, reports, num_found = time.monotonic(), [], 0
        is_inline = inline and (self.is_inline or len(tasks) == 1)
        found = _in_this_process if is_inline else _in_ray
        self.has_failed_task = True  # until all have ended well
        for report, is_found in found([(self.uri(step, number), function, task) for number, task in enumerate(tasks)], shared):
            if "quarantine" in report:
                self.quarantine.merge(report.pop("quarantine"))
            reports.append(report)
            num_found += is_found
            if len(reports) % 100 == 0 or len(reports) == len(tasks):
                seconds = time.monotonic() - started
                logger.info("prepare | %s | %d of %d tasks, %d of them done before | %.1f s", step, len(reports), len(tasks), num_found, seconds)
        self.has_failed_task = False
        return reports

    def place(self, step: str, names: Sequence[str], stage: StagedFolder) -> None:
        """Give the files of a finished step their names in the staged folder; on local disk they keep the old ones too, for a run that ends before commit."""
        filesystem, root = open_storage(stage.path())
        with storage_failures("move files into", stage.path()):
            for folder in {posixpath.dirname(name) for name in names}:
                filesystem.create_dir(posixpath.join(root, folder), recursive=True)
            for number, name in enumerate(names):
                link_or_copy(filesystem, open_storage(self.uri(step, number))[1], posixpath.join(root, name))


def link_or_copy(filesystem: pafs.FileSystem, source: str, target: str) -> None:
    """A second name for a file, a copy on an object store; where neither is to be had (HDFS, disks without hard links) the file moves."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        with suppress(OSError):
            os.link(source, target)
            return
    if can_rename(filesystem):
        filesystem.move(source, target)
    else:
        filesystem.copy_file(source, target)


class StepFiles:
    """The files that a step's tasks wrote, as a later task reads them."""

    def __init__(self, work_uri: str, step: str, offsets: Sequence[Sequence[int]]):
        self.work_uri = work_uri
        self.step = step
        # One array: lists of numbers would be a large part of what every task of a later step unpacks.
        self._offsets = np.concatenate([np.zeros(0, np.int64), *(np.asarray(own, np.int64) for own in offsets)])
        self._first = np.cumsum([0, *(len(own) for own in offsets)])

    def __len__(self) -> int:
        return len(self._first) - 1

    def num_tables(self, task: int) -> int:
        """How many tables a task's file has."""
        return int(self._first[task + 1] - self._first[task]) - 1

    def read(self, task: int, table: int) -> pa.Table:
        """One table of a task's file."""
        return read_part(join_uri(self.work_uri, self.step, f"{task:05d}"), self._offsets[self._first[task] : self._first[task + 1]], table)

    def read_all(self, table: int) -> pa.Table:
        """The same table of all tasks' files, one after the other."""
        return pa.concat_tables(self.read(task, table) for task in range(len(self)))


def _in_this_process(tasks: Sequence[tuple[Any, ...]], shared: Sequence[Any]) -> Iterator[tuple[Report, bool]]:
    for task in tasks:
        yield run_once(*task, *shared)


def _in_ray(tasks: Sequence[tuple[Any, ...]], shared: Sequence[Any]) -> Iterator[tuple[Report, bool]]:
    remote = ray.remote(num_cpus=_cpus_per_task(), max_retries=3)(run_once)
    references = [ray.put(value) for value in shared]
    pending = deque(remote.remote(*task, *references) for task in tasks)
    try:
        while pending:
            yield ray.get(pending.popleft())
    except RayTaskError as error:
        # Ray's own error shows the task's traceback; a mistake in the tables, or a failure of storage, needs only its message.
        raise (error.cause if isinstance(error.cause, InputError | StorageError) else error) from None
    finally:
        for reference in pending:
            ray.cancel(reference)


def run_once(uri: str, function: Callable[..., Report], task: tuple[Any, ...], *shared: Any) -> tuple[Report, bool]:
    """(report of function(uri, *task, *shared), False); (the report beside the file at `uri`, True) where it is written, last, and the file is as it says."""
    filesystem, path = open_storage(uri)
    report_uri = beside_uri(uri, ".json")
    if exists(report_uri) and exists(uri):
        with suppress(ValueError):  # a damaged report is written again
            report: Report = json.loads(read_bytes(report_uri))
            if hash_file(filesystem, path) == {name: report.get(name) for name in ("size_bytes", "sha256")}:
                return report, True
    report = function(uri, *task, *shared)
    write_bytes(report_uri, json.dumps(report).encode())
    return report, False


def _cpus_per_task() -> float:
    """So many logical CPUs that a local Ray, which claims more than there are, runs as many tasks as it has cores: each takes memory."""
    if len(ray.nodes()) > 1:
        return 1
    return max(1, int(ray.cluster_resources().get("CPU", 1) / (os.cpu_count() or 1)))
