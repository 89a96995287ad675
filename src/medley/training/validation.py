"""One metric on the validation users, in this process."""

import dataclasses

import numpy as np

from medley.data.prepared import PreparedData
from medley.index.blend import Blend
from medley.index.scorer import Scorer
from medley.training.evaluate import EvaluateConfig, FusedRanker, Questions, Ranker, make_questions, rank_users, summarise, whole_catalogue
from medley.training.rankers import ranker_of


def even_sample(count: int, most: int) -> np.ndarray:
    """At most so many of the numbers 0 … count - 1, evenly spread, int64."""
    most = min(count, most)
    return np.arange(most) * count // max(most, 1)


def validation_questions(data: PreparedData, evaluate: EvaluateConfig, max_users: int) -> Questions:
    """The questions of an even sample of the validation users."""
    questions = make_questions(data, "valid", evaluate)
    return dataclasses.replace(questions, users=questions.users[even_sample(len(questions.users), max_users)])


def validate_ranker(ranker: Ranker | FusedRanker, questions: Questions, num_items: int, metric: str) -> dict[str, float]:
    """The metrics at the cut of `metric` (NAME@K)."""
    k = int(metric.rpartition("@")[2])
    ranked = rank_users(ranker, questions, whole_catalogue(num_items), k)["all"]
    return {name: value for name, value in summarise(ranked.metrics((k,))).items() if value is not None}


def validate_scorer(scorer: Scorer | Blend, data: PreparedData, evaluate: EvaluateConfig, metric: str) -> dict[str, float]:
    """The metrics at the cut of `metric` (NAME@K) over all validation users; empty where the data have no validation interactions."""
    if len(data.interactions("valid")) == 0:
        return {}
    questions = make_questions(data, "valid", evaluate)
    return validate_ranker(ranker_of(scorer, questions, evaluate), questions, data.num_items, metric)
