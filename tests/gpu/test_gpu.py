"""ZeRO 2 and 3 in bf16, the same losses as on a CPU, resume, and a bundle from a GPU run served on a CPU."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from medley.bundle import bundle_run
from medley.config import Run, make_run
from medley.manifest import read_json
from medley.serving.recommender import Recommender
from medley.training.compare import evaluate_run
from medley.training.run import RUN_KIND, find_prepared, fit


def run_of(storage: Path, prepared: str, tables: str, **train: Any) -> Run:
    """A small text model on the tiny prepared set."""
    values = {
        "name": "gpu",
        "storage": str(storage),
        "inputs": {"prepared": prepared, "tables": tables},
        # Without dropouts: CUDA and CPU draw other numbers from one seed.
        "model": {
            "dimension": 16,
            "encoders": {"text": {"kind": "subword", "vocabulary_size": 300, "dimension": 16}},
            "fusion": {"kind": "gated", "modality_dropout": 0.0},
            "item_id": {"dropout": 0.0},
        },
        "train": {"epochs": 2, "micro_batch_size": 64, "num_micro_batches": 2, "keep_checkpoints": 9, **train},
    }
    return make_run(values, "test")


def losses_of(run: Run) -> list[float]:
    """Every step's loss."""
    return [loss for epoch in read_json(f"{run.run_uri}/history.json") for loss in epoch["step_losses"]]


@pytest.mark.parametrize("stage", [2, 3])
def test_a_bf16_run_trains(ray_session: None, tmp_path: Path, tiny_prepared: str, tiny_tables: str, stage: int):
    run = run_of(tmp_path, tiny_prepared, tiny_tables, use_gpu=True, engine={"zero_stage": stage, "precision": "bf16"})
    fit(run)
    losses = losses_of(run)
    assert sum(losses[-5:]) < sum(losses[:5])


def test_losses_equal_those_of_a_cpu(ray_session: None, tmp_path: Path, tiny_prepared: str, tiny_tables: str):
    cpu = run_of(tmp_path / "cpu", tiny_prepared, tiny_tables)
    gpu = run_of(tmp_path / "gpu", tiny_prepared, tiny_tables, use_gpu=True)
    fit(cpu)
    fit(gpu)
    assert losses_of(gpu)[:10] == pytest.approx(losses_of(cpu)[:10], rel=1e-3)


def test_a_gpu_run_resumes(ray_session: None, tmp_path: Path, tiny_prepared: str, tiny_tables: str):
    run = run_of(tmp_path, tiny_prepared, tiny_tables, use_gpu=True)
    fit(run)
    whole = losses_of(run)
    Path(run.run_uri, "manifest.json").unlink()
    newest = sorted(Path(run.run_uri, "checkpoints").iterdir())[-1]
    shutil.rmtree(newest)
    fit(run)
    assert losses_of(run) == pytest.approx(whole, rel=1e-4)


def test_a_bundle_of_a_gpu_run_is_served_on_a_cpu(ray_session: None, tmp_path: Path, tiny_prepared: str, tiny_tables: str):
    run = run_of(tmp_path, tiny_prepared, tiny_tables, use_gpu=True)
    fit(run)
    data = find_prepared(run)
    evaluate_run(run.run_uri, RUN_KIND, data, tiny_tables, run.evaluate)
    bundle = bundle_run(run.run_uri, RUN_KIND, data, run.bundle_root)["bundle"]
    user = data.users["user_id"][0].as_py()
    assert len(Recommender.load(bundle).recommend(user, k=5).items) == 5
