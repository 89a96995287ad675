"""A finished run beside its baselines and another run: by hand on three users, and the figures of the cluster as those of one process."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medley.config import Run
from medley.data.memory import CatalogueVectors
from medley.data.prepared import PreparedData
from medley.index.scorer import Scorer
from medley.manifest import join_uri, write_json, write_manifest
from medley.schema import InputError
from medley.training.baselines import oracle_scorer, popularity_scorer
from medley.training.compare import Content, evaluate_run, rank_all
from medley.training.evaluate import EvaluateConfig, VectorRanker, make_questions
from medley.training.run import RUN_KIND
from medley.training.slices import item_groups

Finished = tuple[Run, dict[str, Any]]
CONFIG = EvaluateConfig(ks=(1, 2), splits=("valid",), resamples=200)


@pytest.fixture(scope="module")
def hand(hand_prepared: str) -> PreparedData:
    """Three users, five items: user 0 should find item 2, user 1 item 1 (described at `hand_prepared`)."""
    return PreparedData.open(hand_prepared)


def write_run(uri: Path, scores: list[float], prepared: str = "feedc0ffee123456") -> str:
    """A finished run that gives every user these scores of the items."""
    Scorer.of_items(torch.tensor(scores), num_users=3).save(str(uri / "scorer.safetensors"))
    write_json(str(uri / "history.json"), [{"loss": 1.0, "first_step": 0, "step_losses": [1.5, 0.5], "valid": {"ndcg@2": 0.5}}])
    config = {
        "name": uri.name,
        "model": {"encoders": {}, "fusion": {"kind": "gated"}, "users": {"kind": "id"}, "head": {"kind": "mf"}, "dimension": 1},
        "train": {"kind": "gradient"},
        "loss": {"kind": "bpr"},
    }
    write_manifest(str(uri), RUN_KIND, f"run-{uri.name}", parents={"prepared": prepared}, counts={}, config=config)
    return str(uri)


@pytest.fixture
def backwards(tmp_path: Path) -> str:
    """A run that ranks 4 3 2 1 0: user 0 finds item 2 first, user 1 item 1 third."""
    return write_run(tmp_path / "backwards", [1.0, 2.0, 3.0, 4.0, 5.0])


def test_a_run_stands_beside_popularity_in_every_group(hand: PreparedData, backwards: str, tmp_path: Path) -> None:
    measured = evaluate_run(backwards, RUN_KIND, hand, str(tmp_path), CONFIG)
    assert json.loads(Path(backwards, "report", "metrics.json").read_text()) == measured
    assert set(measured) == {"valid"}
    assert set(measured["valid"]) == {"model", "popularity"}
    # Train counts 1 1 0 2 2: user 0 may get 0 2, user 1 may get 3 1 2, so popularity finds item 1 second and item 2 second.
    ndcg = {name: {group: values["ndcg@2"] for group, values in groups.items()} for name, groups in measured["valid"].items()}
    second = 1 / np.log2(3)
    assert ndcg["model"] == {"all": 0.5, "warm": pytest.approx(second), "cold": 1.0, "tail": 1.0}
    assert ndcg["popularity"]["all"] == pytest.approx(second)


def test_the_report_has_every_part(hand: PreparedData, backwards: str, tmp_path: Path) -> None:
    evaluate_run(backwards, RUN_KIND, hand, str(tmp_path), CONFIG)
    evaluation = json.loads(Path(backwards, "report", "evaluation.json").read_text())
    assert evaluation["item_groups"] == {"all": 5, "warm": 4, "cold": 1, "tail": 1}
    valid = evaluation["splits"]["valid"]
    assert set(valid) == {"num_users", "relevance", "compared", "slices", "fairness", "beyond_accuracy"}
    found = valid["relevance"]["model"]["all"]["ndcg@2"]
    assert (found["mean"], found["low"], found["high"], found["num_users"]) == (0.5, 0.0, 1.0, 2)
    assert valid["slices"]["country"]["SE"]["model"]["ndcg@2"]["mean"] == 1.0
    assert valid["slices"]["country"]["unknown"]["model"]["ndcg@2"]["mean"] == 0.0
    assert "DE" not in valid["slices"]["country"]  # nobody from there has anything to find
    # Lists of user 0: 2 0, of user 1: 3 2, of the catalogue of five.
    beyond = valid["beyond_accuracy"]["model"]
    assert beyond["coverage"] == 0.6
    assert beyond["mean_popularity"]["mean"] == pytest.approx((0 + 1 + 2 + 0) / 4)
    page, card = (Path(backwards, "report", name).read_text() for name in ("report.html", "model_card.md"))
    for part in ("Learning curves", "Relevance on valid", "Compared", "Slices", "Fairness", "Beyond accuracy", "Examples", "Title a"):
        assert part in page
    assert card.startswith("# Model card: backwards\n")


def test_without_resamples_there_are_means_alone(hand: PreparedData, backwards: str, tmp_path: Path) -> None:
    evaluate_run(backwards, RUN_KIND, hand, str(tmp_path), CONFIG.model_copy(update={"resamples": 0}))
    valid = json.loads(Path(backwards, "report", "evaluation.json").read_text())["splits"]["valid"]
    assert valid["relevance"]["model"]["all"]["ndcg@2"] == {"mean": 0.5, "low": None, "high": None, "num_users": 2}
    assert valid["compared"] == {"popularity": {}}


def test_content_gives_a_baseline_a_slice_and_modality_shares(hand: PreparedData, backwards: str, tmp_path: Path) -> None:
    # Item 2 is like item 1, which user 0 had; item 4 has no vector.
    vectors = CatalogueVectors(
        {"text": np.array([[0, 1], [1, 0], [1, 0], [0, -1], [0, 0]], dtype=np.float32)}, {"text": np.array([True, True, True, True, False])}
    )
    content = Content(vectors, {"text": np.array([1, 1, 1, 1, 0], dtype=np.float32)})
    measured = evaluate_run(backwards, RUN_KIND, hand, str(tmp_path), CONFIG, content=content)
    assert measured["valid"]["content_knn"]["cold"]["ndcg@2"] == 1.0
    assert "without text" in measured["valid"]["model"]
    assert "Modalities" in Path(backwards, "report", "report.html").read_text()


def test_two_runs_are_compared_on_the_same_users(hand: PreparedData, backwards: str, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", [0.0, 9.0, 1.0, 2.0, 3.0])  # user 0: 2 0, user 1: 1 3
    measured = evaluate_run(backwards, RUN_KIND, hand, str(tmp_path), CONFIG, against_uri=other)
    assert measured["valid"]["other"]["all"]["ndcg@2"] == 1.0
    compared = json.loads(Path(backwards, "report", "evaluation.json").read_text())["splits"]["valid"]["compared"]["other"]["all"]["ndcg@2"]
    assert (compared["mean"], compared["low"], compared["high"], compared["num_users"]) == (-0.5, -1.0, 0.0, 2)
    assert compared["p_value"] == 1.0  # of one difference both signs are equally far from 0


def test_a_run_of_another_prepared_set_is_refused(hand: PreparedData, backwards: str, tmp_path: Path) -> None:
    foreign = write_run(tmp_path / "foreign", [0.0] * 5, prepared="0ther")
    message = "run '.*foreign' was trained on prepared set 0ther; expected the set feedc0ffee123456; evaluate it with its own configuration"
    with pytest.raises(InputError, match=message):
        evaluate_run(foreign, RUN_KIND, hand, str(tmp_path), CONFIG)
    with pytest.raises(InputError, match=message):
        evaluate_run(backwards, RUN_KIND, hand, str(tmp_path), CONFIG, against_uri=foreign)


def test_a_run_whose_scorer_was_changed_is_refused(hand: PreparedData, backwards: str, tmp_path: Path) -> None:
    path = Path(backwards) / "scorer.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(InputError, match="file 'scorer.safetensors' in .* has SHA-256"):
        evaluate_run(backwards, RUN_KIND, hand, str(tmp_path), CONFIG)


def test_an_unfinished_run_is_refused(hand: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no manifest.json; expected a finished folder of kind 'run'"):
        evaluate_run(str(tmp_path), RUN_KIND, hand, str(tmp_path), CONFIG)


def test_data_that_hide_nothing_have_no_oracle(hand: PreparedData, tmp_path: Path) -> None:
    assert oracle_scorer(str(tmp_path), hand) is None


@pytest.mark.long
def test_figures_of_the_cluster_are_those_of_one_process_to_the_last_digit(finished_run: Finished, tiny_prepared: str) -> None:
    run, data = finished_run[0], PreparedData.open(tiny_prepared)
    oracle = oracle_scorer(run.tables_uri, data)
    assert oracle is not None
    scorers = {"model": Scorer.load(join_uri(run.run_uri, "scorer.safetensors")), "popularity": popularity_scorer(data), "oracle": oracle}
    groups = item_groups(data.train_count_N, {})
    questions = make_questions(data, "valid", run.evaluate)
    rankers = {name: VectorRanker.of(scorer, questions, run.evaluate) for name, scorer in scorers.items()}
    here, there = (rank_all(rankers, questions, groups, 20, min_scores) for min_scores in (1 << 40, 0))
    for name, by_group in here.items():
        for group, ranked in by_group.items():
            assert torch.equal(ranked.items_BK, there[name][group].items_BK), (name, group)
            assert torch.equal(ranked.relevant_BK, there[name][group].relevant_BK)


@pytest.mark.long
def test_the_validation_figures_are_those_of_the_best_epoch_and_the_oracle_beats_popularity(finished_run: Finished, tiny_prepared: str, tmp_path: Path) -> None:
    run, result = finished_run
    shutil.copytree(run.run_uri, tmp_path / "run")
    measured = evaluate_run(str(tmp_path / "run"), RUN_KIND, PreparedData.open(tiny_prepared), run.tables_uri, run.evaluate)
    assert {name: measured["valid"]["model"]["all"][name] for name in result["valid"]} == result["valid"]
    for split in ("valid", "test"):
        assert measured[split]["oracle"]["all"]["ndcg@20"] > 1.3 * measured[split]["popularity"]["all"]["ndcg@20"]
