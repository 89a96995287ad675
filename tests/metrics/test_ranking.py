"""Metrics against numbers worked out on paper and against ir-measures."""

import math

import pytest
import torch

from medley.metrics.ranking import METRICS, mae, mean_over_users, ranking_metrics, rmse

# Relevant at places 2 and 4 of five; the user has three relevant items, one of them is not in the list.
RANKED_BK = torch.tensor([[False, True, False, True, False]])
NUM_RELEVANT_B = torch.tensor([3])
LOG2_3, LOG2_5 = math.log2(3), math.log2(5)


@pytest.mark.parametrize(
    ("name", "k", "expected"),
    [
        ("recall", 1, 0.0),
        ("recall", 2, 1 / 3),
        ("recall", 5, 2 / 3),
        ("precision", 2, 1 / 2),
        ("precision", 5, 2 / 5),
        ("f1", 1, 0.0),
        ("f1", 2, 2 / 5),  # precision 1/2, recall 1/3
        ("f1", 5, 1 / 2),  # precision 2/5, recall 2/3
        ("hit_rate", 1, 0.0),
        ("hit_rate", 2, 1.0),
        ("mrr", 1, 0.0),
        ("mrr", 5, 1 / 2),
        ("ndcg", 1, 0.0),
        ("ndcg", 2, (1 / LOG2_3) / (1 + 1 / LOG2_3)),  # the ideal list is cut at k = 2
        ("ndcg", 5, (1 / LOG2_3 + 1 / LOG2_5) / (1 + 1 / LOG2_3 + 1 / 2)),  # the ideal list ends after 3 relevant items
    ],
)
def test_each_metric_gives_the_number_worked_out_by_hand(name, k, expected):
    assert METRICS[name](RANKED_BK, NUM_RELEVANT_B, k).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_list_scores_one(name):
    assert METRICS[name](torch.ones(1, 4, dtype=torch.bool), torch.tensor([4]), 4).item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_a_user_without_relevant_items_is_nan_and_a_user_without_hits_is_zero(name):
    values_B = METRICS[name](torch.zeros(2, 5, dtype=torch.bool), torch.tensor([0, 2]), 3)
    assert values_B.dtype == torch.float64
    assert values_B[0].isnan()
    assert values_B[1] == 0


@pytest.mark.parametrize("name", METRICS)
def test_a_k_longer_than_the_list_reads_the_missing_places_as_not_relevant(name):
    padded_BK = torch.cat([RANKED_BK, torch.zeros(1, 15, dtype=torch.bool)], dim=1)
    assert METRICS[name](RANKED_BK, NUM_RELEVANT_B, 20) == METRICS[name](padded_BK, NUM_RELEVANT_B, 20)


@pytest.mark.parametrize("name", METRICS)
def test_an_empty_list_and_an_empty_batch_are_allowed(name):
    assert METRICS[name](torch.zeros(1, 0, dtype=torch.bool), torch.tensor([2]), 3).tolist() == [0.0]
    assert METRICS[name](torch.zeros(0, 5, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), 3).shape == (0,)


def test_metrics_agree_with_ir_measures_on_random_rankings():
    import ir_measures
    from ir_measures import RR, P, R, Success, nDCG

    num_users, num_items, length = 40, 60, 25
    generator = torch.Generator().manual_seed(0)
    relevant_VN = torch.rand(num_users, num_items, generator=generator) < torch.linspace(0, 0.6, num_users)[:, None]
    ranked_VK = torch.rand(num_users, num_items, generator=generator).argsort(dim=1)[:, :length]
    ours = ranking_metrics(relevant_VN.gather(1, ranked_VK), relevant_VN.sum(dim=1), ks=(1, 5, 20))
    asked = relevant_VN.any(dim=1).nonzero()[:, 0].tolist()
    assert 0 < len(asked) < num_users
    qrels = [ir_measures.Qrel(str(user), str(item), 1) for user in asked for item in relevant_VN[user].nonzero()[:, 0].tolist()]
    run = [ir_measures.ScoredDoc(str(user), str(item), -float(place)) for user in asked for place, item in enumerate(ranked_VK[user].tolist())]
    theirs = {"ndcg": nDCG, "recall": R, "precision": P, "hit_rate": Success, "mrr": RR}
    measures = {str(measure @ k): f"{name}@{k}" for name, measure in theirs.items() for k in (1, 5, 20)}
    found = [
        (measures[str(value.measure)], value) for value in ir_measures.iter_calc([measure @ k for measure in theirs.values() for k in (1, 5, 20)], qrels, run)
    ]
    assert len(found) == len(measures) * len(asked)
    for name, value in found:
        assert ours[name][int(value.query_id)].item() == pytest.approx(value.value, abs=1e-6), (name, value.query_id)


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    generator = torch.Generator().manual_seed(1)
    ranked_relevant_BK, num_relevant_B = torch.rand(30, 10, generator=generator) < 0.2, torch.full((30,), 12)
    values = ranking_metrics(ranked_relevant_BK, num_relevant_B, ks=(3, 10))
    for k in (3, 10):
        precision_B, recall_B = values[f"precision@{k}"], values[f"recall@{k}"]
        assert values[f"f1@{k}"].tolist() == pytest.approx((2 * precision_B * recall_B / (precision_B + recall_B)).nan_to_num().tolist())


def test_ranking_metrics_names_each_value_by_metric_and_k():
    assert list(ranking_metrics(RANKED_BK, NUM_RELEVANT_B, ks=(1, 10), names=("ndcg", "recall"))) == ["ndcg@1", "ndcg@10", "recall@1", "recall@10"]
    assert len(ranking_metrics(RANKED_BK, NUM_RELEVANT_B, ks=(5,))) == len(METRICS)


def test_the_mean_leaves_out_users_without_relevant_items():
    assert mean_over_users(torch.tensor([0.2, float("nan"), 0.4], dtype=torch.float64)) == pytest.approx(0.3)


def test_the_mean_over_no_users_is_nan():
    assert math.isnan(mean_over_users(torch.tensor([float("nan")])))
    assert math.isnan(mean_over_users(torch.zeros(0)))


def test_rating_errors_worked_out_by_hand():
    predicted_B, value_B = torch.tensor([3.0, 4.0, 1.0]), torch.tensor([4.0, 4.0, 3.0])
    assert rmse(predicted_B, value_B).item() == pytest.approx(math.sqrt(5 / 3))
    assert mae(predicted_B, value_B).item() == pytest.approx(1.0)
