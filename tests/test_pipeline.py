"""The whole road as a person starts it: python -m jobs.pipeline, each time a fresh process with a local Ray of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medley.manifest import list_folder, read_manifest, read_parquet, verify_files
from medley.serving.recommender import Recommender

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = [
    "convert.num_items=60",
    "convert.num_users=30",
    "convert.clip_seconds=0.25",
    "model.encoders.audio.clip_seconds=0.25",
    "model.encoders.image.train=frozen",
    "model.encoders.image.cache=true",
    "train.epochs=1",
    "train.workers=1",
]


def run_pipeline(storage: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "jobs.pipeline", "jobs/configs/tiny.yaml", f"storage={storage}", *SETTINGS, "--address", "local"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": "src"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def first(storage: Path) -> dict[str, Any]:
    return run_pipeline(storage)


def test_every_stage_says_what_it_wrote(first: dict[str, Any], storage: Path) -> None:
    assert list(first) == ["convert", "prepare", "encode", "train", "evaluate", "bundle"]
    assert [first[stage]["reused"] for stage in ("convert", "prepare", "train")] == [False] * 3
    assert first["convert"]["tables"] == f"{storage}/tables"
    assert first["convert"]["num_items"] == 60
    assert first["prepare"]["prepared"] == f"{storage}/prepared/{first['prepare']['fingerprint']}"
    image = first["encode"]["image"]
    assert (image["features"], image["reused"]) == (f"{storage}/features/{image['fingerprint']}", False)
    assert first["train"]["run"] == f"{storage}/runs/tiny"
    assert set(first["evaluate"]) == {"valid", "test"}
    assert set(first["evaluate"]["test"]) == {"model", "popularity", "content_knn", "oracle"}
    assert first["bundle"]["bundle"] == f"{storage}/bundles/tiny/{first['bundle']['fingerprint'][:12]}"


def test_every_folder_is_whole_and_names_its_parent(first: dict[str, Any]) -> None:
    folders = {
        "tables": first["convert"]["tables"],
        "prepared": first["prepare"]["prepared"],
        "run": first["train"]["run"],
        "bundle": first["bundle"]["bundle"],
    }
    manifests = {kind: read_manifest(uri, kind) for kind, uri in folders.items()}
    for kind, uri in folders.items():
        verify_files(uri, manifests[kind])
    assert manifests["prepared"]["parents"] == {"tables": first["convert"]["fingerprint"]}
    assert manifests["run"]["parents"] == {"prepared": first["prepare"]["fingerprint"]}
    assert manifests["bundle"]["parents"] == {"run": first["train"]["fingerprint"], "prepared": first["prepare"]["fingerprint"]}
    assert json.loads(Path(folders["run"], "report", "metrics.json").read_text()) == first["evaluate"]
    assert json.loads(Path(folders["bundle"], "metrics.json").read_text()) == first["evaluate"]


def test_the_bundle_recommends(first: dict[str, Any]) -> None:
    recommender = Recommender.load(first["bundle"]["bundle"])
    user = read_parquet(f"{first['bundle']['bundle']}/users.parquet")["user_id"][0].as_py()
    answer = recommender.recommend(user, k=5)
    assert answer.source == "personal"
    assert len({item.item_id for item in answer.items}) == 5
    assert answer.model_version == first["bundle"]["fingerprint"][:12]


def test_the_second_run_finds_everything_done(first: dict[str, Any], storage: Path) -> None:
    again = run_pipeline(storage)
    assert [again[stage]["reused"] for stage in ("convert", "prepare", "train")] == [True] * 3
    assert again["evaluate"] == first["evaluate"]
    assert again["bundle"] == first["bundle"]
    for stage in ("convert", "prepare", "train"):
        assert again[stage]["fingerprint"] == first[stage]["fingerprint"]
    assert len(list_folder(f"{storage}/prepared")) == len(list_folder(f"{storage}/bundles/tiny")) == 1


def test_all_users_are_scored_in_batch_from_the_same_configuration(
    first: dict[str, Any], storage: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.score import main

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["score", "jobs/configs/tiny.yaml", f"storage={storage}", *SETTINGS, "--k", "3", "--processes", "1"])
    result = main()
    assert result["scores"].startswith(f"{storage}/scores/")
    assert (result["k"], result["num_users"]) == (3, first["bundle"]["num_users"])
    assert read_manifest(result["scores"], "scores")["parents"] == {"bundle": first["bundle"]["fingerprint"]}
