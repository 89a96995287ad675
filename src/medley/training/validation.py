"""One metric of a scorer on the validation users, in this process."""

import dataclasses

import numpy as np

from medley.data.prepared import PreparedData
from medley.index.blend import Blend
from medley.index.scorer import Scorer
from medley.training.evaluate import EvaluateConfig, make_questions, rank_users, summarise, whole_catalogue
from medley.training.rankers import ranker_of


def validate_scorer(scorer: Scorer | Blend, data: PreparedData, evaluate: EvaluateConfig, metric: str, max_users: int | None = None) -> dict[str, float]:
    """The metrics at the cut of `metric` (NAME@K); empty where the data have no validation interactions.

    max_users: an even sample of so many users is enough.
    """
    if len(data.interactions("valid")) == 0:
        return {}
    questions = make_questions(data, "valid", evaluate)
    if max_users is not None and len(questions.users) > max_users:
        sample = np.arange(max_users) * len(questions.users) // max_users
        questions = dataclasses.replace(questions, users=questions.users[sample])
    k = int(metric.rpartition("@")[2])
    ranked = rank_users(ranker_of(scorer, questions, evaluate), questions, whole_catalogue(data.num_items), k)["all"]
    return {name: value for name, value in summarise(ranked.metrics((k,))).items() if value is not None}
