"""Searches over the tiny data set, end to end."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medley.config import Run, load_run, make_run
from medley.data.prepared import PreparedData
from medley.index.embed import embed_all
from medley.manifest import list_folder
from medley.schema import InputError
from medley.search.features import encode_for_trials
from medley.search.search import search
from medley.search.spaces import Space, read_space
from medley.search.trials import TrialInputs, assemble_trial
from medley.training.assemble import assemble_model, assemble_stream, learn_assets, make_plan
from medley.training.checkpoint import Progress
from medley.training.engine import TorchEngine
from medley.training.evaluate import VectorRanker, make_questions, rank_users, summarise, whole_catalogue
from medley.training.loop import train_epoch
from medley.training.run import read_assets_of
from medley.training.start import read_weights_of

SPACE = """
model.fusion: {choice: [{kind: gated}, {kind: concat, hidden_dimension: 8}]}
train.optimizer.learning_rate: {log_uniform: [1.0e-3, 1.0e-1]}
"""


def tiny_run(storage: Path, prepared: str, encoders: dict[str, Any], **search_settings: Any) -> Run:
    values = {
        "storage": str(storage),
        "name": "tiny",
        "inputs": {"prepared": prepared, "tables": "/nowhere"},
        "model": {"dimension": 8, "encoders": encoders},
        "train": {"micro_batch_size": 64, "num_micro_batches": 2, "epochs": 7},
        "search": {"base_epochs": 1, "num_trials": 3, "trial_epochs": 2, "grace_epochs": 1, **search_settings},
    }
    return make_run(values, "test")


@pytest.fixture(scope="module")
def prepared_without_test_split(tiny_prepared: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("copy") / "prepared"
    shutil.copytree(tiny_prepared, folder)
    (folder / "test" / "part-00000.parquet").unlink()
    return str(folder)


@pytest.fixture(scope="module")
def space_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(SPACE)
    return str(path)


@pytest.fixture(scope="module")
def searched(ray_session: None, prepared_without_test_split: str, space_file: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    """A finished search with a base run; the test split is not there to be read."""
    run = tiny_run(tmp_path_factory.mktemp("storage"), prepared_without_test_split, {"text": {"kind": "subword", "vocabulary_size": 100, "dimension": 6}})
    return run, search(run, space_file)


def test_a_search_tries_the_configuration_first_and_returns_the_best_trial(searched: tuple[Run, dict[str, Any]]) -> None:
    run, result = searched
    trials = [json.loads(line) for line in Path(run.search_uri, "trials.jsonl").read_text().splitlines()]
    assert len(trials) == result["num_trials"] == 3
    assert any(trial["parameters"] == {} and max(trial["metrics"]) == result["as_configured_metric"] for trial in trials[: run.search.concurrent_trials])
    assert result["best_metric"] == max(value for trial in trials for value in trial["metrics"])
    assert all(len(trial["metrics"]) == (1 if trial["stopped_early"] else 2) for trial in trials)


def test_the_best_configuration_trains_from_the_weights_of_the_search_and_is_the_run_returned(searched: tuple[Run, dict[str, Any]]) -> None:
    run, result = searched
    best = load_run(result["best_config"])
    assert best == result["best_run"]
    assert best.name == "tiny"
    assert best.train.start_from == run.search_uri
    assert best.train.epochs == 7
    first_line = Path(result["best_config"]).read_text().splitlines()[0]
    assert first_line == f"# python -m jobs.train {result['best_config']}"


def test_the_winner_starts_with_the_base_runs_encoders_and_what_its_trial_learned(searched: tuple[Run, dict[str, Any]]) -> None:
    run, result = searched
    weights, base = read_weights_of(run.search_uri), read_weights_of(str(Path(run.storage) / "runs" / "tiny-base"))
    encoders = [name for name in base if name.startswith("encoders.")]
    assert encoders
    assert all(torch.equal(weights[name], base[name]) for name in encoders)
    data = PreparedData.open(str(run.inputs.prepared))
    best = result["best_run"]
    model = assemble_model(best.model, data, read_assets_of(str(Path(run.storage) / "runs" / "tiny-base")), best.seed, pretrained=False)
    model.load_state_dict(weights)  # every weight of the winner, none too many
    stream = assemble_stream(model.eval(), best.model, best.loss, data, make_plan(best.train, data, best.seed), best.stream)
    scorer = embed_all(model, stream, torch.device("cpu"), model.head.global_bias, 0, 1)
    stream.close()
    questions = make_questions(data, "valid", best.evaluate)
    metrics = summarise(rank_users(VectorRanker.of(scorer, questions, best.evaluate), questions, whole_catalogue(data.num_items), 10)["all"].metrics((10,)))
    assert metrics["ndcg@10"] == pytest.approx(result["best_metric"], abs=1e-6)


def test_a_finished_search_is_reused_and_its_tune_folder_is_gone(searched: tuple[Run, dict[str, Any]], space_file: str) -> None:
    run, result = searched
    again = search(run, space_file, resume=True)
    assert again["reused"]
    assert again["best_run"] == result["best_run"]
    assert list_folder(run.search_uri) == ["best.yaml", "manifest.json", "report.json", "trials.jsonl", "weights.safetensors"]


def test_another_space_under_the_same_name_is_refused(searched: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("model.dimension: {int: [4, 8]}\n")
    with pytest.raises(InputError, match="another space"):
        search(searched[0], str(other))


def test_cached_vectors_are_those_of_the_base_run(searched: tuple[Run, dict[str, Any]]) -> None:
    run, _ = searched
    vectors = encode_for_trials(run, str(Path(run.storage) / "runs" / "tiny-base"), PreparedData.open(str(run.inputs.prepared)))
    assert vectors.vectors_ND["text"].shape == (120, 6)
    has_text_N = vectors.present_mask_N["text"]
    assert 0 < has_text_N.sum() < 120
    assert np.abs(vectors.vectors_ND["text"][~has_text_N]).max() == 0
    assert np.abs(vectors.vectors_ND["text"][has_text_N]).sum(axis=1).min() > 0


def test_a_trial_on_cached_vectors_learns_what_training_with_the_frozen_encoder_learns(ray_session: None, tiny_prepared: str, tmp_path: Path) -> None:
    run = tiny_run(tmp_path, tiny_prepared, {"text": {"kind": "subword", "vocabulary_size": 100, "dimension": 6, "train": "frozen"}})
    data = PreparedData.open(tiny_prepared)
    model = assemble_model(run.model, data, learn_assets(run.model.encoders, data), run.seed, pretrained=True)
    stream = assemble_stream(model, run.model, run.loss, data, make_plan(run.train, data, run.seed), run.stream)
    trial = assemble_trial(run, TrialInputs.gather(run, Space((), {}), tiny_prepared, encode_for_trials(run, None, data)))
    full = replace(trial, engine=TorchEngine(model, run.train.optimizer, {"text": None}, run.train.num_micro_batches), stream=stream)
    light_progress, full_progress = Progress(), Progress()
    train_epoch(trial, light_progress)
    train_epoch(full, full_progress)
    stream.close()
    assert light_progress.history[0]["step_losses"] == full_progress.history[0]["step_losses"]
    assert light_progress.history[0]["valid"] == full_progress.history[0]["valid"]


def test_a_model_without_encoders_is_searched_without_a_base_run(ray_session: None, prepared_without_test_split: str, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "storage", prepared_without_test_split, {}, num_trials=1)
    space = tmp_path / "space.yaml"
    space.write_text("model.dimension: {int: [4, 16]}\n")
    result = search(run, str(space))
    assert result["best_run"].train.start_from is None
    assert result["best_run"].model == run.model
    assert list_folder(run.storage) == ["searches"]
    assert read_space(str(space), run).own_point == {"model.dimension": 8}
