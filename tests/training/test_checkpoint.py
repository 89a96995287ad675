"""Checkpoints on disk: whole or absent, verified when read, the newest good one wins; no Ray."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs as pafs
import pytest
import torch

from medley.index.scorer import Scorer
from medley.schema import InputError
from medley.training.checkpoint import (
    Progress,
    checkpoint_names,
    load_matching_weights,
    load_weights,
    read_checkpoint,
    read_newest,
    remove_old,
    write_checkpoint,
)
from medley.training.engine import ModelState

SOURCE = Path(__file__).resolve().parents[2] / "src"


def write(folder: Path, step: int, scorer: Scorer | None = None, **progress: Any) -> str:
    """A checkpoint whose every number is its step."""
    weights = {"linear.weight": torch.full((2, 3), float(step)), "count_N": torch.tensor([step, 2])}
    optimizer = {"linear.weight/exp_avg": torch.full((2, 3), step / 10), "linear.weight/exp_avg_sq": torch.full((2, 3), step / 100)}
    state = ModelState(weights, optimizer, num_steps=step)
    return write_checkpoint(str(folder), state, Progress(step=step, **progress), scorer, {"num_ranks": 2, "zero_stage": 3}, "feedc0ffee123456")


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def test_a_checkpoint_comes_back_by_name(tmp_path: Path) -> None:
    history = [{"epoch": 0, "loss": 1.5, "step_losses": [2.0, 1.0], "valid": {"ndcg@10": None}}]
    name = write(tmp_path, 120, Scorer.of_items(torch.tensor([1.0, 2.0]), 3), epoch=1, best_metric=0.25, best_checkpoint="step-00000120", history=history)
    assert name == "step-00000120"
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == [
        "manifest.json",
        "optimizer.safetensors",
        "scorer.safetensors",
        "state.json",
        "weights.safetensors",
    ]
    found = read_checkpoint(str(tmp_path), name)
    assert found.progress == Progress(epoch=1, step=120, best_metric=0.25, best_checkpoint="step-00000120", history=history)
    assert found.model.num_steps == 120
    assert torch.equal(found.model.weights["linear.weight"], torch.full((2, 3), 120.0))
    assert found.model.weights["count_N"].dtype == torch.int64
    assert torch.equal(found.model.optimizer["linear.weight/exp_avg_sq"], torch.full((2, 3), 1.2))


def test_a_folder_without_checkpoints_starts_from_nothing(tmp_path: Path) -> None:
    assert read_newest(str(tmp_path / "absent")) is None
    assert read_newest(str(tmp_path)) is None


def test_leftovers_of_crashed_writes_are_no_checkpoints(tmp_path: Path) -> None:
    write(tmp_path, 2)
    for leftover in ("step-00000004.tmp-12345678", "step-00000002.tmp-old-12345678"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "weights.safetensors").write_bytes(b"half")
    assert checkpoint_names(str(tmp_path)) == ["step-00000002"]
    newest = read_newest(str(tmp_path))
    assert newest is not None
    assert newest.progress.step == 2


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: flip_byte(folder / "weights.safetensors"), "file 'weights.safetensors'.*SHA-256"),
        (lambda folder: truncate(folder / "optimizer.safetensors"), "file 'optimizer.safetensors'.*bytes"),
        (lambda folder: truncate(folder / "state.json"), "file 'state.json'"),
        (lambda folder: (folder / "optimizer.safetensors").unlink(), "optimizer.safetensors"),
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
        (lambda folder: truncate(folder / "manifest.json"), "is not JSON"),
    ],
    ids=["flipped byte", "truncated", "truncated state", "missing file", "no manifest", "truncated manifest"],
)
def test_a_damaged_newest_checkpoint_is_skipped_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], reason: str
) -> None:
    write(tmp_path, 2)
    write(tmp_path, 4)
    damage(tmp_path / "step-00000004")
    with caplog.at_level(logging.WARNING, logger="medley.training.checkpoint"):
        newest = read_newest(str(tmp_path))
    assert newest is not None
    assert newest.name == "step-00000002"
    (record,) = caplog.records
    assert record.getMessage().startswith("checkpoint step-00000004 is not used: ")
    assert re.search(reason, record.getMessage()), record.getMessage()


def test_all_checkpoints_damaged_is_refused_instead_of_a_silent_start_from_nothing(tmp_path: Path) -> None:
    for step in (2, 4):
        flip_byte(tmp_path / write(tmp_path, step) / "state.json")
    with pytest.raises(InputError) as refused:
        read_newest(str(tmp_path))
    message = str(refused.value)
    assert message.startswith(f"no checkpoint of '{tmp_path}' is whole (step-00000004: file 'state.json'")
    assert "step-00000002: file 'state.json'" in message
    assert message.endswith("expected at least one good checkpoint; restore one, or start anew with --fresh")


@pytest.fixture
def written_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that pyarrow does not know as local, as an object store is: folders are written in place and come with their files."""
    storage = pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("file", auto_mkdir=True)))
    for module in ("medley.manifest", "medley.training.checkpoint"):
        monkeypatch.setattr(f"{module}.open_storage", lambda uri: (storage, uri))


def test_a_crash_in_the_first_checkpoint_on_an_object_store_leaves_nothing_to_resume(
    written_in_place: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / write(tmp_path, 2) / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING, logger="medley.training.checkpoint"):
        assert read_newest(str(tmp_path)) is None
    assert [record.getMessage() for record in caplog.records] == [
        "checkpoint step-00000002 counts as absent: it has no manifest.json, so its writing never ended"
    ]


def test_a_lost_manifest_on_local_storage_is_damage_and_refused(tmp_path: Path) -> None:
    (tmp_path / write(tmp_path, 2) / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"is whole \(step-00000002: .*has no manifest\.json"):
        read_newest(str(tmp_path))


def test_a_used_folder_on_an_object_store_without_a_good_checkpoint_is_refused(written_in_place: None, tmp_path: Path) -> None:
    first, second = write(tmp_path, 2), write(tmp_path, 4)
    (tmp_path / second / "manifest.json").unlink()
    newest = read_newest(str(tmp_path))
    assert newest is not None
    assert newest.name == first
    flip_byte(tmp_path / first / "state.json")
    with pytest.raises(InputError, match=r"is whole \(step-00000004: no manifest\.json; step-00000002: file 'state\.json'"):
        read_newest(str(tmp_path))
    (tmp_path / first / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"is whole \(step-00000002: no manifest\.json; step-00000004: no manifest\.json\)"):
        read_newest(str(tmp_path))


def test_an_unfinished_checkpoint_on_an_object_store_does_not_push_out_a_good_one(written_in_place: None, tmp_path: Path) -> None:
    for step in (2, 4, 6):
        write(tmp_path, step)
    (tmp_path / "step-00000006" / "manifest.json").unlink()
    remove_old(str(tmp_path), keep=1, best=None)
    newest = read_newest(str(tmp_path))
    assert newest is not None
    assert newest.name == "step-00000004"
    assert not (tmp_path / "step-00000002").exists()


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8, 10):
        write(tmp_path, step)
    remove_old(str(tmp_path), keep=2, best="step-00000004")
    assert checkpoint_names(str(tmp_path)) == ["step-00000004", "step-00000008", "step-00000010"]
    remove_old(str(tmp_path), keep=1, best=None)
    assert checkpoint_names(str(tmp_path)) == ["step-00000010"]


CRASHING_WRITE = """
import os, sys
from pathlib import Path
import medley.manifest
setattr(medley.manifest, sys.argv[2], lambda *arguments, **settings: os._exit(9))
import torch
from medley.training.checkpoint import Progress, write_checkpoint
from medley.training.engine import ModelState
write_checkpoint(sys.argv[1], ModelState({"a": torch.ones(3)}, {}, 4), Progress(step=4), None, {}, "feedc0ffee123456")
"""
"""A process that dies at a moment of its write, with no chance to clean up."""


@pytest.mark.parametrize("moment", ["write_manifest", "_replace_folder"], ids=["before the manifest", "before the rename"])
def test_a_process_that_dies_while_it_writes_leaves_the_older_checkpoint_and_nothing_visible(tmp_path: Path, moment: str) -> None:
    write(tmp_path, 2)
    died = subprocess.run([sys.executable, "-c", CRASHING_WRITE, str(tmp_path), moment], env={**os.environ, "PYTHONPATH": str(SOURCE)}, timeout=60)
    assert died.returncode == 9
    assert len(list(tmp_path.iterdir())) == 2, "the crash was to leave something behind"
    assert checkpoint_names(str(tmp_path)) == ["step-00000002"]
    newest = read_newest(str(tmp_path))
    assert newest is not None
    assert newest.name == "step-00000002"


def test_weights_load_by_name_and_a_stranger_is_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 1))
    load_weights(model, {"0.weight": torch.tensor([[1.0, 2.0]]), "0.bias": torch.tensor([3.0])})
    assert model(torch.tensor([1.0, 1.0])).item() == 6.0
    with pytest.raises(RuntimeError, match="Missing key"):
        load_weights(model, {"0.weight": torch.tensor([[1.0, 2.0]])})


def test_matching_weights_are_taken_over_and_the_others_stay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 1))
    before = model.state_dict()["0.bias"].clone()
    taken = load_matching_weights(model, {"0.weight": torch.tensor([[1.0, 2.0]]), "0.bias": torch.zeros(5), "1.weight": torch.zeros(1)})
    assert taken == 1
    assert torch.equal(model[0].weight, torch.tensor([[1.0, 2.0]]))
    assert torch.equal(model[0].bias, before)
