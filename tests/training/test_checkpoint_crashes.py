"""Processes that die at every moment of a commit, and checkpoints that are damaged at rest: the newest good one is used, and nothing is believed."""

import logging
import os
import random
import shutil
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

from medley import manifest
from medley.index.scorer import Scorer
from medley.training import checkpoint_choice, checkpoint_parts
from medley.training.checkpoint_choice import read_newest
from tests.training.rank_threads import write

DEAD = 9
SCORER = Scorer.of_items(torch.ones(2), 3)
REPEATS = 20

BEFORE_COMMIT = [
    ("before", "create_dir", "step-"),
    ("half", "write", "part-00000.safetensors"),
    ("before", "move", "part-00000.safetensors"),
    ("after", "move", "part-00000.safetensors"),
    ("after", "move", "part-00000.json"),
    ("half", "write", "part-00001.safetensors"),
    ("after", "move", "part-00001.json"),
    ("before", "move", "scorer.safetensors"),
    ("after", "move", "state.json"),
    ("half", "write", "manifest.json"),
    ("before", "move", "manifest.json"),
    ("after", "move", "manifest.json"),
    ("before", "move", "step-"),
]
AFTER_COMMIT = [
    ("after", "move", "step-"),
    ("after", "delete_file", "manifest.json"),
    ("before", "delete_dir", "step-"),
    ("after", "delete_dir", "step-"),
]
"""When, in which operation of storage, on what. Of what is removed the manifest goes first."""

IN_PLACE = [
    ("half", "write", "part-00000.safetensors"),
    ("half", "write", "part-00001.safetensors"),
    ("after", "close", "part-00000.json"),
    ("after", "close", "part-00001.json"),
    ("after", "close", "state.json"),
    ("half", "write", "manifest.json"),
]
"""The same where folders cannot be renamed, as on an object store; a manifest there is only seen when all of it is there, so half of one stands for damage."""


class DyingStorage:
    """A file system in whose process one moment is the last. Removing what an earlier crash has left is no moment of the commit."""

    def __init__(self, filesystem: Any, moment: tuple[str, str, str]):
        self.filesystem = filesystem
        self.moment = moment

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.filesystem, name)
        if name == "open_output_stream":
            return lambda path: DyingStream(found(path), path, self.moment)
        if name not in ("create_dir", "move", "delete_file", "delete_dir"):
            return found

        def operation(*arguments: Any, **options: Any) -> Any:
            # A folder is made and filled under a temporary name; of a move its goal counts.
            die_at("before", name, arguments[-1], self.moment)
            found(*arguments, **options)
            die_at("after", name, arguments[-1], self.moment)

        return operation


class DyingStream:
    """A file being written in the same process."""

    def __init__(self, stream: Any, path: str, moment: tuple[str, str, str]):
        self.stream, self.path, self.moment = stream, path, moment

    def write(self, content: Any) -> None:
        if is_moment("half", "write", self.path, self.moment) and len(content) > 16:
            self.stream.write(content[: len(content) // 2])
            self.stream.close()
            os._exit(DEAD)
        self.stream.write(content)

    def __enter__(self) -> "DyingStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        die_at("after", "close", self.path, self.moment)


def is_moment(when: str, operation: str, path: str, moment: tuple[str, str, str]) -> bool:
    name = os.path.basename(path)
    return (when, operation) == moment[:2] and name.startswith(moment[2]) and not (operation.startswith("delete") and ".tmp-" in path)


def die_at(when: str, operation: str, path: str, moment: tuple[str, str, str]) -> None:
    if is_moment(when, operation, path, moment):
        os._exit(DEAD)


def crash(folder: Path, step: int, moment: tuple[str, str, str]) -> int:
    """The exit code of a process that writes the checkpoint of a step as two ranks, and dies at a moment of it."""
    child = os.fork()
    if child == 0:
        try:
            open_storage = manifest.open_storage

            def dying(uri: str) -> tuple[Any, str]:
                filesystem, path = open_storage(uri)
                return DyingStorage(filesystem, moment), path

            for module in (manifest, checkpoint_parts, checkpoint_choice):
                module.open_storage = dying  # type: ignore[attr-defined]
            write(folder, step, num_ranks=2, keep=2, scorer=SCORER)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    killer = threading.Timer(30, os.kill, (child, 9))
    killer.start()
    _, status = os.waitpid(child, 0)
    killer.cancel()
    return os.waitstatus_to_exitcode(status)


def newest_step(folder: Path) -> int:
    """The step of the checkpoint that a run would go on from, all of whose tensors are those of that step."""
    newest = read_newest(str(folder))
    assert newest is not None, "a silent start from nothing"
    step = newest.progress.step
    assert torch.equal(newest.state.tensor("mix.weight"), torch.arange(21.0).view(7, 3) + step)
    assert torch.equal(newest.state.tensor("mix.weight/exp_avg"), torch.arange(21.0).view(7, 3) / 10 - step)
    assert newest.state.num_steps == step
    return step


def test_a_process_that_dies_at_any_moment_of_a_commit_leaves_the_newest_good_checkpoint(tmp_path: Path) -> None:
    """One folder through all crashes, each begun on what the one before has left."""
    write(tmp_path, 2, 4, num_ranks=2)
    newest, moments = 4, [*BEFORE_COMMIT, *AFTER_COMMIT]
    order = random.Random(7)
    for _ in range(REPEATS):
        for moment in order.sample(moments, len(moments)):
            assert crash(tmp_path, newest + 2, moment) == DEAD, f"{moment} did not come"
            newest += 2 if moment in AFTER_COMMIT else 0
            assert newest_step(tmp_path) == newest, moment
        write(tmp_path, newest + 2, num_ranks=2, keep=2)
        assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:08d}" for step in (newest, newest + 2)]
        newest += 2


def test_a_process_that_dies_where_folders_cannot_be_renamed_leaves_the_newest_good_checkpoint(written_in_place: None, tmp_path: Path) -> None:
    write(tmp_path, 2, 4, num_ranks=2)
    for moment in random.Random(7).sample(IN_PLACE * 3, len(IN_PLACE) * 3):
        assert crash(tmp_path, 6, moment) == DEAD, f"{moment} did not come"
        assert newest_step(tmp_path) == 4, moment
    write(tmp_path, 6, num_ranks=2, keep=2)
    assert newest_step(tmp_path) == 6


@pytest.fixture
def two_checkpoints(tmp_path: Path) -> Path:
    """Of steps 2 and 4, by two ranks."""
    write(tmp_path, 2, 4, num_ranks=2, scorer=Scorer.of_items(torch.ones(2), 3))
    return tmp_path


def assert_refused(folder: Path, path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    """With this content (None: without the file) step 4 is refused with a reason and step 2 is used; then all is as before."""
    before = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    caplog.clear()
    assert newest_step(folder) == 2, damage
    (record,) = caplog.records
    assert record.getMessage().startswith("checkpoint step-00000004 is not used: "), damage
    path.write_bytes(before)


def test_every_damage_at_rest_is_found_and_the_checkpoint_before_is_used(two_checkpoints: Path, caplog: pytest.LogCaptureFixture) -> None:
    """200 flipped bits, 30 cuts, every file deleted and every file emptied."""
    caplog.set_level(logging.WARNING, logger="medley.training.checkpoint_choice")
    files = sorted((two_checkpoints / "step-00000004").iterdir())
    assert len(files) == 7
    draw = random.Random(11)
    for _ in range(200):
        path = draw.choice(files)
        content = bytearray(path.read_bytes())
        bit = draw.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        assert_refused(two_checkpoints, path, bytes(content), caplog, f"bit {bit} of {path.name}")
    for _ in range(30):
        path = draw.choice(files)
        length = draw.randrange(path.stat().st_size)
        assert_refused(two_checkpoints, path, path.read_bytes()[:length], caplog, f"{path.name} cut to {length} bytes")
    for path in files:
        assert_refused(two_checkpoints, path, None, caplog, f"{path.name} deleted")
        assert_refused(two_checkpoints, path, b"", caplog, f"{path.name} emptied")
    assert newest_step(two_checkpoints) == 4
    shutil.rmtree(two_checkpoints / "step-00000004")
    assert newest_step(two_checkpoints) == 2
