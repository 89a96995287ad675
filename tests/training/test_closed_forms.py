"""Closed forms and blends from a prepared set to a scorer, in this process: what they state, what they refuse."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from medley.data.item_lists import ItemLists
from medley.data.prepared import PreparedData
from medley.heads.als import AlsConfig
from medley.heads.content import ContentConfig
from medley.heads.ease import EaseConfig
from medley.heads.vae import VaeConfig
from medley.index.blend import Blend
from medley.index.scorer import Scorer
from medley.manifest import write_manifest
from medley.schema import InputError
from medley.training.als import ContentPrior, HalfSolver, first_vectors, make_problem, sweep, train_als
from medley.training.blend import BlendConfig, part_folders, train_blend
from medley.training.ease import check_memory, train_ease
from medley.training.evaluate import EvaluateConfig, Questions, make_questions, rank_block
from medley.training.rankers import ranker_of
from medley.training.vae import rate_factor, train_vae
from medley.training.validation import validate_scorer

EVALUATE = EvaluateConfig(ks=(3,))


@pytest.fixture(scope="module")
def data(hand_prepared: str) -> PreparedData:
    return PreparedData.open(hand_prepared)


def test_ease_states_its_rank_and_what_the_cut_loses(data: PreparedData) -> None:
    scorer, history = train_ease(EaseConfig(regularization=1.0, rank=2, metric="ndcg@3"), data, EVALUATE, seed=0)
    assert (scorer.item_vectors_ND.shape, history[0]["rank"]) == ((5, 2), 2)
    assert history[0]["lost"] == pytest.approx(history[0]["full_valid"] - history[0]["valid"]["ndcg@3"])
    full, history = train_ease(EaseConfig(regularization=1.0, rank=5, metric="ndcg@3"), data, EVALUATE, seed=0)
    assert history[0]["lost"] == 0.0
    assert full.history_vectors_ND is not None
    # User 0 had items 1, 3 and 4.
    assert full.user_vectors_VD[0].tolist() == pytest.approx(full.history_vectors_ND[[1, 3, 4]].sum(dim=0).tolist(), abs=1e-5)


def test_ease_too_large_for_the_machine_is_refused_with_its_size() -> None:
    check_memory(3_600, available_bytes=4_000_000_000)
    with pytest.raises(InputError, match=r"EASE of 100,000 items needs 240\.0 GB of memory, this machine has 4\.0 GB free; expected at most 12,909 items here"):
        check_memory(100_000, available_bytes=4_000_000_000)


def test_content_that_the_items_do_not_have_is_refused(data: PreparedData) -> None:
    config = EaseConfig(content=(ContentConfig(columns=("genres",)),))
    with pytest.raises(InputError, match=r"train\.content\[0\] reads column 'genres', the prepared items have title"):
        train_ease(config, data, EVALUATE, seed=0)


def test_als_lowers_its_loss_in_every_epoch_and_reports_validation(data: PreparedData) -> None:
    config = AlsConfig(dimension=3, epochs=6, regularization=0.05, unobserved_weight=0.2, user_weight_exponent=0.5, block_dimension=2, metric="ndcg@3")
    scorer, history = train_als(config, data, EVALUATE, seed=0)
    losses = [entry["loss"] for entry in history]
    assert losses == sorted(losses, reverse=True)
    assert set(history[-1]["valid"]) >= {"ndcg@3", "recall@3"}
    assert not scorer.item_vectors_ND[2].any()  # nobody had item 2
    again, _ = train_als(config, data, EVALUATE, seed=0)
    assert torch.equal(again.item_vectors_ND, scorer.item_vectors_ND)


def test_the_reported_loss_is_the_documented_one(data: PreparedData) -> None:
    config = AlsConfig(dimension=2, regularization=0.05, regularization_exponent=1.0, unobserved_weight=0.2)
    problem = make_problem(config, data)
    users_VD, items_ND = first_vectors(config, problem, seed=0)
    solver = [(HalfSolver(problem.halves, 2), ((0, 3), (0, 5)))]
    users_VD, items_ND, loss = sweep(solver, problem, config, users_VD, items_ND, None)
    weights = np.zeros((3, 5))
    np.add.at(weights, (data.train.users, data.train.items), data.train.weights)
    scores = (users_VD @ items_ND.T).numpy()
    expected = (weights * (1 - scores) ** 2).sum() + 0.2 * (scores**2).sum()
    expected += 0.05 * ((weights.sum(axis=1) + 0.2 * 5) * (users_VD.numpy() ** 2).sum(axis=1)).sum()
    expected += 0.05 * ((weights.sum(axis=0) + 0.2 * 3) * (items_ND.numpy() ** 2).sum(axis=1)).sum()
    assert loss == pytest.approx(expected, rel=1e-4)


def test_als_that_diverges_says_so_and_what_to_change(data: PreparedData) -> None:
    config = AlsConfig(dimension=4, epochs=3, regularization=1e-30, unobserved_weight=0.0, initial_deviation=1e20, block_dimension=4)
    with pytest.raises(InputError, match=r"als diverges: loss nan in epoch 1; expected a loss that falls; raise train\.regularization"):
        train_als(config, data, EVALUATE, seed=0)


def test_explicit_als_predicts_the_ratings_it_was_given(data: PreparedData) -> None:
    # Every rating of the set is 1.5: the mean says it all.
    scorer, _ = train_als(AlsConfig(feedback="explicit", dimension=2, epochs=2, regularization=0.05), data, EVALUATE, seed=0)
    scores = scorer.user_vectors_VD @ scorer.item_vectors_ND.T + scorer.user_bias_V[:, None] + scorer.item_bias_N + scorer.global_bias
    assert scores.numpy() == pytest.approx(np.full((3, 5), 1.5), abs=1e-5)


def test_the_content_prior_gives_a_new_item_the_vector_of_its_twin() -> None:
    cosines = torch.eye(3)
    cosines[0, 2] = cosines[2, 0] = 1.0  # item 2 was never seen, and is item 0 by content
    prior = ContentPrior(cosines, np.array([4, 4, 0]), regularization=1e-6)
    filled = prior.fill_cold(torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]))
    assert filled[2].tolist() == pytest.approx([1.0, 2.0], abs=1e-4)
    assert filled[:2].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_the_vae_learns_the_histories_and_is_the_same_again(data: PreparedData) -> None:
    config = VaeConfig(dimension=4, hidden_dimension=8, epochs=30, batch_size=2, learning_rate=0.01, dropout=0.2, metric="ndcg@3")
    scorer, history = train_vae(config, data, EVALUATE, seed=0)
    assert history[-1]["loss"] < history[0]["loss"]
    scores = scorer.user_vectors_VD @ scorer.item_vectors_ND.T + scorer.item_bias_N
    assert set(scores[0].topk(3).indices.tolist()) == {1, 3, 4}
    assert torch.equal(train_vae(config, data, EVALUATE, seed=0)[0].user_vectors_VD, scorer.user_vectors_VD)


def test_the_rate_falls_to_zero_over_the_last_share_of_the_epochs() -> None:
    assert [rate_factor(epoch, 10, 0.4) for epoch in (0, 6, 8, 9)] == pytest.approx([1.0, 1.0, 0.5, 0.25])
    assert rate_factor(9, 10, 0.0) == 1.0


def write_run(folder: Path, name: str, scorer: Scorer, prepared: str) -> str:
    """A finished run of one scorer."""
    uri = str(folder / "runs" / name)
    scorer.save(f"{uri}/scorer.safetensors")
    config: dict[str, Any] = {"train": {"kind": "als"}}
    write_manifest(uri, "run", name, parents={"prepared": prepared}, counts={}, config=config)
    return uri


def item_scores(*scores: float) -> Scorer:
    """Everybody gets the items in this order."""
    return Scorer(torch.ones(3, 1), torch.tensor(scores)[:, None], torch.zeros(3), torch.zeros(5), torch.zeros(()))


@pytest.mark.parametrize("how", ["rank", "linear"])
def test_a_blend_leans_to_the_run_that_finds_what_validation_asks_for(tmp_path: Path, data: PreparedData, how: str) -> None:
    # User 0 looks for item 2, user 1 for item 1, which even the good run puts second.
    good, bad = item_scores(1, 4, 5, 0, 0), item_scores(5, 0, 0, 4, 3)
    runs = tuple(write_run(tmp_path, name, scorer, data.identity) for name, scorer in (("good", good), ("bad", bad)))
    blend, history = train_blend(BlendConfig(runs=runs, how=how, metric="ndcg@1"), data, EVALUATE, seed=0)
    assert history[0]["weights"]["good"] >= history[0]["weights"]["bad"]
    assert history[0]["alone"] == {"good": 0.5, "bad": 0.0}
    assert history[0]["valid"]["ndcg@1"] == 0.5
    assert list(blend.parts) == ["good", "bad"]
    assert validate_scorer(blend, data, EVALUATE, "ndcg@1") == history[0]["valid"]


def test_a_linear_blend_ranks_by_the_sum(data: PreparedData) -> None:
    blend = Blend({"a": item_scores(1, 0, 0, 0, 0), "b": item_scores(0, 1, 0, 0, 0)}, {"a": 0.5, "b": 2.0}, by_rank=False)
    ranker = ranker_of(blend, make_questions(data, "valid", EVALUATE), EVALUATE)
    assert ranker.scores(np.array([0])).tolist() == [[0.5, 2.0, 0.0, 0.0, 0.0]]


def test_groups_of_items_are_fused_as_serving_fuses_candidates() -> None:
    from medley.index.exact import BlendSearch

    generator = torch.Generator().manual_seed(0)
    zeros = torch.zeros(2), torch.zeros(700), torch.zeros(())
    parts = {name: Scorer(torch.randn(2, 3, generator=generator), torch.randn(700, 3, generator=generator), *zeros) for name in "ab"}
    blend = Blend(parts, {"a": 0.4, "b": 0.6}, by_rank=True)
    users, excluded = np.arange(2), ItemLists.from_pairs(np.array([0, 1]), np.array([600, 3]), 2)
    questions = Questions(users, excluded, excluded, ItemLists.from_pairs(users[:0], users[:0], 2), np.ones(700))
    # The last items by the first part, so that none of them is among its first 200.
    groups = {"all": np.arange(700), "cold": np.sort(torch.argsort((parts["a"].user_vectors_VD @ parts["a"].item_vectors_ND.T)[0])[:30].numpy())}
    ranked = rank_block(ranker_of(blend, questions, EVALUATE), questions, 0, groups, 250)
    for name, items in groups.items():
        for user in users:
            served = BlendSearch(blend).among(blend.user_columns_VD[user], np.setdiff1d(items, excluded.of(user)), 250)[0].tolist()
            assert ranked[name].items_BK[user].tolist() == served + [-1] * (250 - len(served))


def test_a_blend_of_runs_over_other_data_is_refused(tmp_path: Path, data: PreparedData) -> None:
    runs = (write_run(tmp_path, "a", item_scores(1, 0, 0, 0, 0), data.identity), write_run(tmp_path, "b", item_scores(1, 0, 0, 0, 0), "otherdata"))
    with pytest.raises(InputError, match=r"b' was trained on prepared set otherdata; expected the set feedc0ffee123456"):
        train_blend(BlendConfig(runs=runs), data, EVALUATE, seed=0)


def test_weights_for_another_number_of_runs_are_refused(tmp_path: Path, data: PreparedData) -> None:
    runs = tuple(write_run(tmp_path, name, item_scores(1, 0, 0, 0, 0), data.identity) for name in "ab")
    with pytest.raises(InputError, match=r"train\.weights has 3 numbers for 2 runs"):
        train_blend(BlendConfig(runs=runs, weights=(0.2, 0.3, 0.5)), data, EVALUATE, seed=0)


def test_names_of_runs_are_folders_of_the_same_storage() -> None:
    assert part_folders(BlendConfig(runs=("a", "s3://other/runs/b")), "/out").runs == ("/out/runs/a", "s3://other/runs/b")


def test_weights_of_a_blend_are_shares() -> None:
    for weights in ((0.0, 0.0), (-0.5, 1.5), (float("nan"), 1.0)):
        with pytest.raises(ValidationError, match="weights"):
            BlendConfig(runs=("a", "b"), weights=weights)


def test_content_that_describes_no_item_is_refused() -> None:
    with pytest.raises(InputError, match=r"train\.content describes no item"):
        ContentPrior(torch.zeros(3, 3), np.array([1, 0, 2]), 1.0)
