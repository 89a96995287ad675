"""fit through Ray Train: one loss curve at every ZeRO stage and world size, through a killed worker and a resume; the doors' messages."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from medley.config import Run, override_run
from medley.schema import InputError
from medley.training.checkpoint_choice import read_checkpoint
from medley.training.run import fit

pytestmark = pytest.mark.long

TinyRun = Callable[..., Run]
Finished = tuple[Run, dict[str, Any]]
STEPS_PER_EPOCH, NUM_STEPS = 18, 54


def history_of(run: Run) -> list[dict[str, Any]]:
    return json.loads(Path(run.run_uri, "history.json").read_text())


def losses_of(run: Run) -> dict[int, float]:
    """step (from 0) → loss, for the steps the history has."""
    return {epoch["first_step"] + place: loss for epoch in history_of(run) for place, loss in enumerate(epoch["step_losses"])}


def logged_losses(run: Run) -> list[dict[int, float]]:
    """For each attempt step (from 0) → loss, as its log holds them."""
    logs = []
    for path in sorted(Path(run.run_uri, "log").glob(f"{run.name}-*.jsonl"), key=lambda path: path.stat().st_mtime):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        logs.append({record["step"] - 1: record["loss"] for record in records if record["kind"] == "step"})
    return logs


def copy_unfinished(source: Run, target: Run, last_step: int) -> None:
    """The run's folder as a stop after `last_step` would have left it."""
    shutil.copytree(source.run_uri, target.run_uri)
    folder = Path(target.run_uri)
    for name in ("manifest.json", "history.json", "weights.safetensors", "scorer.safetensors"):
        (folder / name).unlink()
    for checkpoint in (folder / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > last_step:
            shutil.rmtree(checkpoint)


def test_a_run_writes_what_the_architecture_says(finished_run: Finished) -> None:
    run, result = finished_run
    assert losses_of(run).keys() == set(range(NUM_STEPS))
    manifest = json.loads(Path(run.run_uri, "manifest.json").read_text())
    assert set(manifest["files"]) == {"assets/done.json", "assets/text/tokenizer.json", "history.json", "scorer.safetensors", "weights.safetensors"}
    assert manifest["counts"] == {"best_epoch": result["best_epoch"], "num_steps": NUM_STEPS, "num_epochs": 3}
    valid = [epoch["valid"]["ndcg@10"] for epoch in history_of(run)]
    assert result["best_epoch"] == valid.index(max(valid))
    assert result["valid"]["ndcg@10"] == max(valid)
    names = sorted(path.name for path in Path(run.run_uri, "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in (10, 18, 20, 30, 36, 40, 50, 54)]
    best = read_checkpoint(str(Path(run.run_uri, "checkpoints")), f"step-{STEPS_PER_EPOCH * (result['best_epoch'] + 1):08d}").state
    weights = load_file(Path(run.run_uri, "weights.safetensors"))
    assert weights.keys() == {entry.name for entry in best.weights()}
    assert all(torch.equal(value, best.tensor(name)) for name, value in weights.items())
    assert any("tfevents" in path.name for path in Path(run.run_uri, "log").iterdir())
    assert losses_of(run) == pytest.approx(logged_losses(run)[0], rel=1e-6)


@pytest.mark.parametrize(("workers", "stage"), [(2, 0), (2, 3), (1, 2)])
def test_losses_do_not_depend_on_stage_and_world_size(finished_run: Finished, tiny_run: TinyRun, workers: int, stage: int) -> None:
    run = tiny_run(f"stage-{stage}-of-{workers}", workers=workers, engine={"zero_stage": stage})
    fit(run)
    base, found = losses_of(finished_run[0]), losses_of(run)
    difference = max(abs(found[step] - base[step]) / base[step] for step in base)
    print(f"{workers} workers at stage {stage}: largest relative difference over {len(base)} steps {difference:.1e}")
    assert found == pytest.approx(base, rel=1e-4)
    ours, theirs = (load_file(Path(one.run_uri, "scorer.safetensors")) for one in (run, finished_run[0]))
    for name, value in theirs.items():
        assert float((ours[name] - value).abs().max()) < 1e-3, name


def kill_a_worker_after(folder: Path, killed: dict[str, Any]) -> None:
    """Once a checkpoint of step 15 or later stands, end one training process that this session started."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        steps = [int(path.name[5:]) for path in folder.glob("step-????????")]
        if steps and max(steps) >= 15:
            workers = [child for child in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(child.cmdline())]
            killed |= {"step": max(steps), "pid": workers[-1].pid, "num_workers": len(workers)}
            os.kill(workers[-1].pid, signal.SIGKILL)
            return
        time.sleep(0.005)


def test_a_killed_worker_costs_no_step_and_changes_no_loss(finished_run: Finished, tiny_run: TinyRun) -> None:
    """At ZeRO-1, which with its two workers has the curve of the other stages too."""
    run, killed = tiny_run("killed", checkpoint_every_steps=5, engine={"zero_stage": 1}), {}
    killer = threading.Thread(target=kill_a_worker_after, args=(Path(run.run_uri, "checkpoints"), killed))
    killer.start()
    fit(run)
    killer.join()
    assert killed["num_workers"] == 2
    assert not psutil.pid_exists(killed["pid"])
    attempts = logged_losses(run)
    assert len(attempts) == 2, "the run did not start again: the worker was not killed in time"
    first, second = attempts
    assert max(first) < NUM_STEPS - 1
    assert min(second) >= killed["step"]
    assert max(second) == NUM_STEPS - 1
    base = losses_of(finished_run[0])
    found = {**first, **second}
    print(f"killed after step {killed['step']}: largest difference {max(abs(found[step] - base[step]) for step in base):.1e}")
    assert found == pytest.approx(base, abs=1e-6)
    assert [epoch["valid"] for epoch in history_of(run)] == [epoch["valid"] for epoch in history_of(finished_run[0])]


def test_a_run_goes_on_with_another_stage_and_world_size(finished_run: Finished, tiny_run: TinyRun) -> None:
    base, run = finished_run[0], tiny_run("elastic", workers=1, engine={"zero_stage": 3})
    copy_unfinished(base, run, last_step=20)
    fit(run)
    expected, found = losses_of(base), losses_of(run)
    print(f"resumed at stage 3 with 1 worker: largest relative difference {max(abs(found[step] / expected[step] - 1) for step in found):.1e}")
    # What came before step 20 is out of the checkpoint.
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-4)
    assert min(logged_losses(run)[-1]) == 20


def test_a_finished_run_is_found_whatever_holds_it(finished_run: Finished, tiny_run: TinyRun) -> None:
    run, result = finished_run
    before = Path(run.run_uri, "manifest.json").read_bytes()
    again = fit(tiny_run("base", workers=1, engine={"zero_stage": 0}))
    assert again["reused"]
    assert not result["reused"]
    assert {**again, "reused": False, "seconds": 0} == {**result, "seconds": 0}
    assert Path(run.run_uri, "manifest.json").read_bytes() == before
    assert len(logged_losses(run)) == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train.optimizer.learning_rate": 0.02}, "train.optimizer.learning_rate"),
        ({"model.dimension": 4, "seed": 1}, "model.dimension, seed"),
        ({"train.workers": 1, "evaluate.given_share": 0.5}, "evaluate.given_share"),
    ],
)
def test_the_same_name_with_other_settings_is_refused_and_they_are_named(finished_run: Finished, changes: dict[str, Any], named: str) -> None:
    run = finished_run[0]
    with pytest.raises(InputError) as refused:
        fit(override_run(run, changes))
    message = str(refused.value)
    assert message.startswith(f"run 'base' in '{run.storage}' was made with other ")
    assert named in message
    assert message.endswith("; expected the same settings and data to resume it; choose another name=, or start anew with --fresh")


def test_fresh_starts_anew_and_start_from_takes_the_weights_over(finished_run: Finished, tiny_run: TinyRun) -> None:
    base = finished_run[0]
    run = override_run(base, {"name": "warm", "train.start_from": base.run_uri, "train.epochs": 1})
    shutil.copytree(base.run_uri, run.run_uri)
    with pytest.raises(InputError, match="other .*train.epochs, train.start_from; "):
        fit(run)
    result = fit(run, fresh=True)
    assert not result["reused"]
    assert not list(Path(run.run_uri, "checkpoints").glob("step-00000054"))
    cold, warm = losses_of(base), losses_of(run)
    assert warm.keys() == set(range(STEPS_PER_EPOCH))
    print(f"first losses: {cold[0]:.3f} from nothing, {warm[0]:.3f} from the trained weights")
    assert warm[0] < cold[0] - 0.1
    again = fit(run)
    assert again["reused"]


def test_start_from_something_that_is_no_run_is_refused(ray_session: None, tiny_run: TinyRun, tiny_tables: str) -> None:
    with pytest.raises(InputError, match="holds no weights; expected the folder of a finished run or search"):
        fit(tiny_run("lost", start_from=tiny_tables))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.encoders.text.column": "story"},
            "encoder 'text' reads column 'story', the prepared items have .*; expected a column of the items table; correct model.encoders, or add",
        ),
        (
            {"model.encoders.audio": {"kind": "logmel_cnn", "sample_rate_hz": 16000}},
            "encoder 'audio' expects 16000 Hz, the prepared clips have 8000 Hz; .* set model.encoders.audio.sample_rate_hz=8000, or prepare again",
        ),
        (
            {"model.users": {"kind": "attributes", "columns": ["shoe_size"]}},
            "model.users reads column 'shoe_size', the users table has .*country.*; expected a column of the users table",
        ),
        ({"model.encoders": {}, "model.item_id": None}, "model has neither encoders nor item_id; expected at least one of them"),
        ({"loss": {"kind": "mse"}}, "loss.kind is mse, but the interactions have no values; expected a filled column 'value'; use a softmax loss"),
        ({"train.workers": 3}, "train.workers=3 and train.num_micro_batches=4; expected a number of micro-batches that the workers divide evenly"),
        (
            {"train.workers": 16, "train.num_micro_batches": 16},
            "train asks for 16 CPU and the cluster has 8; expected no more than there is; lower train.workers or train.cpus_per_worker",
        ),
        ({"train.use_gpu": True}, "train asks for 2 GPU and the cluster has 0; "),
    ],
    ids=["item column", "sample rate", "user column", "no item vector", "no ratings", "uneven workers", "too many workers", "no GPU"],
)
def test_what_the_data_or_the_cluster_lack_is_refused_before_anything_starts(
    ray_session: None, tiny_run: TinyRun, changes: dict[str, Any], message: str
) -> None:
    run = override_run(tiny_run("refused"), changes)
    with pytest.raises(InputError, match=f"^{message}"):
        fit(run)
    assert not Path(run.run_uri).exists()


def test_a_missing_prepared_set_is_refused_and_what_differs_is_named(ray_session: None, tiny_run: TinyRun, tiny_prepared: str, tmp_path: Path) -> None:
    stored = {"storage": str(tmp_path), "inputs.prepared": None, "data.media": {"image_max_side_pixels": 16, "audio_sample_rate_hz": 8000}}
    with pytest.raises(InputError, match=r"has no data prepared with these tables, data settings and seed; expected a finished set '\w{16}'; run jobs.prepare"):
        fit(override_run(tiny_run("lost"), stored))
    name = Path(tiny_prepared).name
    shutil.copytree(tiny_prepared, tmp_path / "prepared" / name)
    for changes, named in [
        ({"seed": 7}, "seed"),
        ({"data.media.image_max_side_pixels": 32, "data.k_core.users": 2}, "data.k_core.users, data.media.image_max_side_pixels"),
    ]:
        with pytest.raises(InputError, match=rf"and seed \('{name}' differs in {named}\); "):
            fit(override_run(tiny_run("lost"), {**stored, **changes}))
