"""Checkpoints on disk: by name and range whoever wrote them, whole or absent, verified when read, the newest good one wins; no Ray."""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from medley.index.scorer import Scorer
from medley.schema import InputError
from medley.training import checkpoint_parts
from medley.training.checkpoint import Progress, load_matching_weights, load_weights, write_weights
from medley.training.checkpoint_choice import checkpoint_names, read_checkpoint, read_newest, remove_leftovers, remove_old
from medley.training.checkpoint_parts import StoredState, TensorSlice, write_part
from tests.training.rank_threads import on_ranks, write


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_a_checkpoint_comes_back_by_name_however_many_ranks_wrote_it(tmp_path: Path, num_ranks: int) -> None:
    history = [{"epoch": 0, "loss": 1.5, "step_losses": [2.0, 1.0], "valid": {"ndcg@10": None}}]
    progress = {"epoch": 1, "best_metric": 0.25, "best_checkpoint": "step-00000120", "history": history}
    write(tmp_path, 120, num_ranks=num_ranks, scorer=Scorer.of_items(torch.tensor([1.0, 2.0]), 3), **progress)
    parts = [f"part-{number:05d}.{kind}" for number in range(num_ranks) for kind in ("json", "safetensors")]
    assert sorted(path.name for path in (tmp_path / name_of(120)).iterdir()) == ["manifest.json", *parts, "scorer.safetensors", "state.json"]
    found = read_checkpoint(str(tmp_path), name_of(120))
    assert found.progress == Progress(step=120, **progress)
    assert found.state.num_steps == 120
    assert torch.equal(found.state.tensor("mix.weight"), torch.arange(21.0).view(7, 3) + 120)
    assert torch.equal(found.state.tensor("mix.weight/exp_avg"), torch.arange(21.0).view(7, 3) / 10 - 120)
    assert torch.equal(found.state.tensor("count_N"), torch.tensor([120, 2]))
    assert [entry.name for entry in found.state.weights()] == ["mix.weight", "count_N"]


def test_parts_are_safetensors_files_that_anybody_can_read(tmp_path: Path) -> None:
    write(tmp_path, 3, num_ranks=2)
    with safe_open(tmp_path / name_of(3) / "part-00001.safetensors", "pt") as file:
        assert set(file.keys()) == {"mix.weight@11", "mix.weight/exp_avg@11"}
        assert torch.equal(file.get_tensor("mix.weight@11"), torch.arange(11.0, 21.0) + 3)
    assert load_file(tmp_path / name_of(3) / "part-00000.safetensors")["count_N@0"].tolist() == [3, 2]


def test_any_range_is_read_and_only_the_pieces_that_it_lies_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_parts, "PIECE_ELEMENTS", 4)
    write(tmp_path, 0, num_ranks=2)
    uri = tmp_path / name_of(0)
    state = read_checkpoint(str(tmp_path), name_of(0)).state
    assert [(piece.start, piece.length) for piece in state.pieces["mix.weight"]] == [(0, 4), (4, 4), (8, 3), (11, 4), (15, 4), (19, 2)]
    for start in range(22):
        for stop in range(start, 22):
            assert state.read("mix.weight", start, stop).tolist() == list(range(start, stop))
    damaged = state.pieces["mix.weight"][1]
    content = bytearray((uri / "part-00000.safetensors").read_bytes())
    content[damaged.offset_bytes] ^= 1
    (uri / "part-00000.safetensors").write_bytes(bytes(content))
    again = StoredState(str(uri), [json.loads((uri / f"part-0000{number}.json").read_text()) for number in range(2)], 0)
    assert again.read("mix.weight", 8, 21).tolist() == list(range(8, 21))
    with pytest.raises(InputError, match=r"'mix.weight' in '.*part-00000.safetensors' has CRC-32 \w{8} in elements 4 to 7; expected \w{8}; the file"):
        again.read("mix.weight", 0, 8)


@pytest.mark.parametrize("dtype", list(checkpoint_parts.SAFETENSORS_NAMES))
def test_every_number_format_and_every_shape_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    slices = [TensorSlice("a", (5, 1), 0, values), TensorSlice("scalar", (), 0, values[1:2]), TensorSlice("empty", (0, 3), 0, values[:0])]
    write_part(str(tmp_path), 0, slices)
    state = StoredState(str(tmp_path), [json.loads((tmp_path / "part-00000.json").read_text())], 0)
    assert torch.equal(state.tensor("a"), values.view(5, 1))
    assert torch.equal(state.tensor("scalar"), values[1])
    assert state.tensor("empty").shape == (0, 3)


@pytest.mark.parametrize(("starts", "message"), [((0, 4), "element 3 of 'a' is missing"), ((0, 2), "element 3 of 'a' is there twice"), ((0,), "'a' ends at 3")])
def test_parts_that_do_not_hold_each_element_once_are_our_mistake(tmp_path: Path, starts: tuple[int, ...], message: str) -> None:
    for number, start in enumerate(starts):
        write_part(str(tmp_path), number, [TensorSlice("a", (6,), start, torch.zeros(3))])
    indices = [json.loads((tmp_path / f"part-{number:05d}.json").read_text()) for number in range(len(starts))]
    with pytest.raises(AssertionError, match=message):
        StoredState(str(tmp_path), indices, 0)


def test_weights_are_written_whole_for_the_finished_run(tmp_path: Path) -> None:
    write(tmp_path, 5, num_ranks=3)
    state = read_checkpoint(str(tmp_path), name_of(5)).state
    write_weights(str(tmp_path / "weights.safetensors"), state, {"encoders.image.a": torch.ones(2, 2), "count_N": torch.tensor([9, 9])})
    found = load_file(tmp_path / "weights.safetensors")
    assert {name: value.tolist() for name, value in found.items() if name != "mix.weight"} == {"encoders.image.a": [[1, 1], [1, 1]], "count_N": [9, 9]}
    assert torch.equal(found["mix.weight"], torch.arange(21.0).view(7, 3) + 5)


def test_a_folder_without_checkpoints_starts_from_nothing(tmp_path: Path) -> None:
    assert read_newest(str(tmp_path / "absent")) is None
    assert read_newest(str(tmp_path)) is None


def test_leftovers_of_crashed_writes_are_no_checkpoints_and_the_next_writer_removes_them(tmp_path: Path) -> None:
    write(tmp_path, 2)
    leftovers = [tmp_path / "step-00000004.tmp-12345678", tmp_path / "step-00000002.tmp-old-12345678"]
    for leftover in leftovers:
        leftover.mkdir()
        (leftover / "part-00000.safetensors").write_bytes(b"half")
    assert checkpoint_names(str(tmp_path)) == ["step-00000002"]
    newest = read_newest(str(tmp_path))
    assert newest is not None
    assert newest.progress.step == 2
    write(tmp_path, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000006"]


DAMAGES = {
    "flipped byte": (lambda folder: flip_byte(folder / "part-00000.safetensors"), "file 'part-00000.safetensors'.*SHA-256"),
    "truncated": (lambda folder: truncate(folder / "part-00001.safetensors"), "file 'part-00001.safetensors'.*bytes"),
    "truncated index": (lambda folder: truncate(folder / "part-00001.json"), "file 'part-00001.json'.*bytes"),
    "truncated state": (lambda folder: truncate(folder / "state.json"), "file 'state.json'"),
    "missing file": (lambda folder: (folder / "part-00001.safetensors").unlink(), "'part-00001.safetensors' is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
    "truncated manifest": (lambda folder: truncate(folder / "manifest.json"), "is not JSON"),
    "another kind": (lambda folder: shutil.copyfile(folder.parent / "other.json", folder / "manifest.json"), "kind 'checkpoint'.*expected kind 'sliced"),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_damaged_newest_checkpoint_is_skipped_by_all_ranks_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str, num_ranks: int
) -> None:
    from medley.manifest import encode_manifest

    (tmp_path / "other.json").write_bytes(encode_manifest({"kind": "checkpoint", "format_version": 1, "files": {}}))
    write(tmp_path, 2, 4, num_ranks=2)
    spoil, reason = DAMAGES[damage]
    spoil(tmp_path / "step-00000004")
    with caplog.at_level(logging.WARNING, logger="medley.training.checkpoint_choice"):
        newest = on_ranks(num_ranks, lambda seat: read_newest(str(tmp_path), seat))
    assert [found.name for found in newest] == ["step-00000002"] * num_ranks
    (record,) = caplog.records
    assert record.getMessage().startswith("checkpoint step-00000004 is not used: ")
    assert re.search(reason, record.getMessage()), record.getMessage()


def test_ranks_share_the_verification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medley import manifest

    write(tmp_path, 4, num_ranks=2)
    hashed, hash_file = [], manifest.hash_file
    monkeypatch.setattr(manifest, "hash_file", lambda filesystem, path: hashed.append(Path(path).name) or hash_file(filesystem, path))
    on_ranks(3, lambda seat: read_newest(str(tmp_path), seat))
    assert sorted(hashed) == ["part-00000.json", "part-00000.safetensors", "part-00001.json", "part-00001.safetensors", "state.json"]


def test_all_checkpoints_damaged_is_refused_instead_of_a_silent_start_from_nothing(tmp_path: Path) -> None:
    write(tmp_path, 2, 4)
    for step in (2, 4):
        flip_byte(tmp_path / name_of(step) / "state.json")
    for error in on_ranks(2, lambda seat: read_newest(str(tmp_path), seat)):
        assert isinstance(error, InputError)
        message = str(error)
        assert message.startswith(f"no checkpoint of '{tmp_path}' is whole (step-00000004: file 'state.json'")
        assert "step-00000002: file 'state.json'" in message
        assert message.endswith("expected at least one good checkpoint; restore one, or start anew with --fresh")


def test_a_crash_in_the_first_checkpoint_on_an_object_store_leaves_nothing_to_resume(
    written_in_place: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 2)
    (tmp_path / name_of(2) / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING, logger="medley.training.checkpoint_choice"):
        assert read_newest(str(tmp_path)) is None
    assert [record.getMessage() for record in caplog.records] == [
        "checkpoint step-00000002 counts as absent: it has no manifest.json, so its writing never ended"
    ]
    remove_leftovers(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_lost_manifest_on_local_storage_is_damage_and_refused(tmp_path: Path) -> None:
    write(tmp_path, 2)
    (tmp_path / name_of(2) / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"is whole \(step-00000002: .*has no manifest\.json"):
        read_newest(str(tmp_path))
    remove_leftovers(str(tmp_path))
    assert (tmp_path / name_of(2)).exists(), "damage is evidence, no leftover"


def test_a_used_folder_on_an_object_store_without_a_good_checkpoint_is_refused(written_in_place: None, tmp_path: Path) -> None:
    write(tmp_path, 2, 4, num_ranks=2)
    first, second = name_of(2), name_of(4)
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


def test_a_step_that_is_written_again_in_place_loses_all_of_its_older_files(written_in_place: None, tmp_path: Path) -> None:
    write(tmp_path, 2, 4, num_ranks=3)
    flip_byte(tmp_path / name_of(4) / "part-00002.safetensors")
    write(tmp_path, 4, num_ranks=2)
    assert not (tmp_path / name_of(4) / "part-00002.json").exists()
    newest = read_newest(str(tmp_path))
    assert newest is not None
    assert newest.name == name_of(4)
    assert newest.state.tensor("mix.weight")[0, 0] == 4


def test_an_unfinished_checkpoint_on_an_object_store_does_not_push_out_a_good_one(written_in_place: None, tmp_path: Path) -> None:
    write(tmp_path, 2, 4, 6)
    (tmp_path / "step-00000006" / "manifest.json").unlink()
    remove_old(str(tmp_path), "step-00000004", keep=1, best=None)
    newest = read_newest(str(tmp_path))
    assert newest is not None
    assert newest.name == "step-00000004"
    assert not (tmp_path / "step-00000002").exists()


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    write(tmp_path, 2, 4, 6, 8, 10, keep=2, best_checkpoint="step-00000004")
    assert checkpoint_names(str(tmp_path)) == ["step-00000004", "step-00000008", "step-00000010"]
    remove_old(str(tmp_path), "step-00000010", keep=1, best=None)
    assert checkpoint_names(str(tmp_path)) == ["step-00000010"]


def test_refused_checkpoints_of_later_steps_push_out_no_good_one(tmp_path: Path) -> None:
    write(tmp_path, 2, 4, 8, 9)
    for step in (8, 9):
        flip_byte(tmp_path / name_of(step) / "state.json")
    newest = read_newest(str(tmp_path))
    assert newest is not None
    assert newest.name == name_of(4)
    write(tmp_path, 6, keep=2)
    assert checkpoint_names(str(tmp_path)) == [name_of(4), name_of(6)]


def test_weights_load_by_name_and_a_stranger_is_refused(tmp_path: Path) -> None:
    def stored(**values: list[Any]) -> StoredState:
        slices = [TensorSlice(name.replace("_", "."), tuple(torch.tensor(value).shape), 0, torch.tensor(value).flatten()) for name, value in values.items()]
        write_part(str(tmp_path), 0, slices)
        return StoredState(str(tmp_path), [json.loads((tmp_path / "part-00000.json").read_text())], 0)

    model = torch.nn.Sequential(torch.nn.Linear(2, 1))
    load_weights(model, stored(**{"0_weight": [[1.0, 2.0]], "0_bias": [3.0]}))
    assert model(torch.tensor([1.0, 1.0])).item() == 6.0
    with pytest.raises(InputError, match=r"differ in 1 weights \('0.bias': absent and \(1,\)\); expected equal names and shapes; resume"):
        load_weights(model, stored(**{"0_weight": [[1.0, 2.0]]}))
    with pytest.raises(InputError, match=r"differ in 1 weights \('0.weight': \(2, 1\) and \(1, 2\)\)"):
        load_weights(model, stored(**{"0_weight": [[1.0], [2.0]], "0_bias": [3.0]}))


def test_matching_weights_are_taken_over_and_the_others_stay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 1))
    before = model.state_dict()["0.bias"].clone()
    taken = load_matching_weights(model, {"0.weight": torch.tensor([[1.0, 2.0]]), "0.bias": torch.zeros(5), "1.weight": torch.zeros(1)})
    assert taken == 1
    assert torch.equal(model[0].weight, torch.tensor([[1.0, 2.0]]))
    assert torch.equal(model[0].bias, before)
