"""A finished run beside its baselines: the figures of the cluster are those of one process."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from medley.config import Run
from medley.data.prepared import PreparedData
from medley.index.scorer import Scorer
from medley.manifest import join_uri
from medley.schema import InputError
from medley.training.compare import evaluate_run, oracle_scorer, popularity_scorer
from medley.training.evaluate import EvaluateConfig, group_masks, make_questions, rank_block, summarise
from medley.training.run import RUN_KIND

Finished = tuple[Run, dict[str, Any]]

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def data(tiny_prepared: str) -> PreparedData:
    return PreparedData.open(tiny_prepared)


@pytest.fixture(scope="module")
def measured(finished_run: Finished, data: PreparedData) -> dict[str, Any]:
    run = finished_run[0]
    return evaluate_run(run.run_uri, RUN_KIND, data, run.tables_uri, run.evaluate)


def test_the_report_is_what_was_returned(measured: dict[str, Any], finished_run: Finished) -> None:
    assert json.loads(Path(finished_run[0].run_uri, "report", "metrics.json").read_text()) == measured
    assert set(measured) == {"valid", "test"}
    for by_scorer in measured.values():
        assert set(by_scorer) == {"model", "popularity", "oracle"}
        assert all(set(groups) == {"all", "warm", "cold"} for groups in by_scorer.values())


def test_figures_are_those_of_one_process_to_the_last_digit(measured: dict[str, Any], finished_run: Finished, data: PreparedData) -> None:
    run = finished_run[0]
    oracle = oracle_scorer(run.tables_uri, data)
    assert oracle is not None
    scorers = {"model": Scorer.load(join_uri(run.run_uri, "scorer.safetensors")), "popularity": popularity_scorer(data), "oracle": oracle}
    for split, by_scorer in measured.items():
        questions = make_questions(data, split, run.evaluate)
        for name, scorer in scorers.items():
            for group, mask_N in group_masks(data.train_count_N).items():
                blocks = [rank_block(scorer, questions, block, mask_N, run.evaluate.ks, run.evaluate) for block in range(questions.num_blocks)]
                assert by_scorer[name][group] == summarise(blocks), (split, name, group)


def test_the_validation_figures_are_those_of_the_best_epoch(measured: dict[str, Any], finished_run: Finished) -> None:
    best = finished_run[1]["valid"]
    assert {name: measured["valid"]["model"]["all"][name] for name in best} == best


def test_the_oracle_beats_popularity(measured: dict[str, Any]) -> None:
    for split in ("valid", "test"):
        assert measured[split]["oracle"]["all"]["ndcg@20"] > 1.3 * measured[split]["popularity"]["all"]["ndcg@20"]


def test_popularity_is_the_train_count_for_everybody(data: PreparedData) -> None:
    scorer = popularity_scorer(data)
    scores_VN = scorer.user_vectors_VD @ scorer.item_vectors_ND.T + scorer.item_bias_N
    assert torch.equal(scores_VN, torch.from_numpy(data.train_count_N).float().expand(data.num_users, -1))


def test_data_that_hide_nothing_have_no_oracle(data: PreparedData, tmp_path: Path) -> None:
    assert oracle_scorer(str(tmp_path), data) is None


def test_a_run_of_another_prepared_set_is_refused(finished_run: Finished, hand_prepared: str) -> None:
    run = finished_run[0]
    with pytest.raises(InputError, match="was trained on prepared set .*; expected the set feedc0ffee123456; evaluate it with its own configuration"):
        evaluate_run(run.run_uri, RUN_KIND, PreparedData.open(hand_prepared), run.tables_uri, EvaluateConfig())


def test_a_run_whose_scorer_was_changed_is_refused(finished_run: Finished, data: PreparedData, tmp_path: Path) -> None:
    run = finished_run[0]
    shutil.copytree(run.run_uri, tmp_path / "run")
    path = tmp_path / "run" / "scorer.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(InputError, match="file 'scorer.safetensors' in .* has SHA-256"):
        evaluate_run(str(tmp_path / "run"), RUN_KIND, data, run.tables_uri, run.evaluate)


def test_an_unfinished_run_is_refused(data: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no manifest.json; expected a finished folder of kind 'run'"):
        evaluate_run(str(tmp_path), RUN_KIND, data, str(tmp_path), EvaluateConfig())
