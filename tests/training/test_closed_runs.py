"""Closed forms and a blend of them through fit, evaluation, bundle and Recommender, on the tiny data with Ray."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from medley import owner
from medley.bundle import bundle_run, read_bundle
from medley.config import Run, make_run
from medley.data.prepared import PreparedData
from medley.heads.als import AlsConfig
from medley.index.blend import Blend
from medley.schema import InputError
from medley.serving.recommender import Recommender
from medley.storage import beside_uri
from medley.training.als import first_vectors, make_problem, make_solvers, sweep
from medley.training.compare import evaluate_run
from medley.training.run import RUN_KIND, fit


@pytest.fixture(scope="module")
def run_of(tiny_prepared: str, tiny_tables: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes Runs of one storage by name and train settings."""
    storage = str(tmp_path_factory.mktemp("closed"))

    def make(name: str, **train: Any) -> Run:
        inputs = {"prepared": tiny_prepared, "tables": tiny_tables}
        return make_run({"storage": storage, "name": name, "inputs": inputs, "train": train, "evaluate": {"splits": ["valid"], "resamples": 20}}, "test")

    return make


@pytest.fixture(scope="module")
def blend_bundle(ray_session: None, run_of: Any, tiny_prepared: str, tiny_tables: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """URI of the bundle of a blend by rank of an EASE and an ALS run, and what its evaluation measured."""
    fit(run_of("ease", kind="ease", regularization=5, rank=20))
    fit(run_of("als", kind="als", dimension=8, epochs=3, regularization=0.05, unobserved_weight=0.1))
    run, data = run_of("blend", kind="blend", runs=["ease", "als"]), PreparedData.open(tiny_prepared)
    result = fit(run)
    assert set(result["weights"]) == {"ease", "als"}
    metrics = evaluate_run(run.run_uri, RUN_KIND, data, tiny_tables, run.evaluate)
    assert metrics["valid"]["model"]["all"]["ndcg@20"] == pytest.approx(result["valid"]["ndcg@20"])
    root = str(tmp_path_factory.mktemp("bundles"))
    return bundle_run(run.run_uri, RUN_KIND, data, root)["bundle"], metrics


def test_a_finished_closed_run_is_found_and_another_of_its_name_refused(blend_bundle: tuple[str, dict[str, Any]], run_of: Any) -> None:
    assert fit(run_of("ease", kind="ease", regularization=5, rank=20))["reused"]
    assert fit(run_of("ease", kind="ease", regularization=5, rank=20, cpus_per_worker=0.5))["reused"]
    with pytest.raises(InputError, match=r"was made with other train\.regularization"):
        fit(run_of("ease", kind="ease", regularization=6, rank=20))


def test_a_run_that_another_process_trains_is_refused_even_fresh_and_left_as_it_is(
    blend_bundle: tuple[str, dict[str, Any]], run_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.05)
    run = run_of("ease", kind="ease", regularization=5, rank=20)
    for fresh in (False, True):
        with (
            owner.owned(beside_uri(run.run_uri, ".owner"), "run"),
            pytest.raises(InputError, match=rf"says that process {os.getpid()} on .* works on this run, since \d+ s; expected one process at a time"),
        ):
            fit(run, fresh=fresh)
    assert fit(run)["reused"]
    assert not Path(f"{run.run_uri}.owner").exists()


def test_the_blend_is_served_with_its_parts_and_folds_in_new_users(blend_bundle: tuple[str, dict[str, Any]]) -> None:
    bundle = read_bundle(blend_bundle[0])
    assert isinstance(bundle.scorer, Blend)
    recommender = Recommender(bundle)
    answer = recommender.recommend(bundle.users["user_id"][0].as_py(), k=5)
    assert (answer.source, len(answer.items)) == ("personal", 5)
    shares = recommender.shares(bundle.users["user_id"][0].as_py(), [answer.items[0].item_id])
    assert set(shares) == {"ease", "als"}
    new = recommender.recommend("nobody", k=5, history=[item.item_id for item in answer.items[:2]])
    assert (new.source, len(new.items)) == ("fold_in", 5)
    assert recommender.similar(answer.items[0].item_id, 3)


def test_a_mistake_found_in_the_task_is_the_users(ray_session: None, run_of: Any) -> None:
    with pytest.raises(InputError, match=r"train\.content\[0\] reads column 'directors'"):
        fit(run_of("wrong", kind="ease", content=[{"columns": ["directors"]}]))


def test_two_workers_give_the_vectors_of_one(ray_session: None, tiny_prepared: str) -> None:
    found = []
    for workers in (1, 2):
        config = AlsConfig(dimension=8, epochs=2, regularization=0.05, unobserved_weight=0.1, workers=workers, cpus_per_worker=0.5)
        problem = make_problem(config, PreparedData.open(tiny_prepared))
        solvers = make_solvers(problem, config)
        users_VD, items_ND = first_vectors(config, problem, seed=0)
        for _ in range(config.epochs):
            users_VD, items_ND, _ = sweep(solvers, problem, config, users_VD, items_ND, None)
        found.append(torch.cat([users_VD, items_ND]))
    assert found[0].numpy() == pytest.approx(found[1].numpy(), abs=1e-4)


def test_a_blend_of_a_run_that_is_not_there_is_refused(ray_session: None, run_of: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"runs/absent' has no manifest\.json"):
        fit(run_of("lost", kind="blend", runs=["absent", "also"]))
