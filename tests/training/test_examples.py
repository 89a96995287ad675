"""Users shown in the report."""

import io

import numpy as np
import pytest
import torch

from medley.data.prepared import PreparedData
from medley.training.baselines import popularity_scorer
from medley.training.evaluate import EvaluateConfig, VectorRanker, make_questions, rank_users, whole_catalogue
from medley.training.examples import SIDE_PIXELS, make_examples, thumbnails


def test_an_example_has_the_newest_items_of_the_history_and_marks_what_was_right(hand_prepared: str) -> None:
    data = PreparedData.open(hand_prepared)
    questions = make_questions(data, "valid", EvaluateConfig())
    ranked = rank_users(VectorRanker.of(popularity_scorer(data), questions, EvaluateConfig()), questions, whole_catalogue(5), 3)["all"]
    # User 1 has two train items, user 0 three; train rows are in time order.
    bob, ann = make_examples(data, questions, ranked)
    assert (ann.user_id, ann.num_train_items, ann.num_relevant) == ("ann", 3, 1)
    assert ann.history == [(None, "Title b", False), (None, "Title d", False), (None, "Title e", False)]
    assert ann.recommended == [(None, "Title a", False), (None, "Title c", True)]  # nothing else is left of five items
    assert [caption for _, caption, _ in bob.recommended] == ["Title d", "Title b", "Title c"]


def test_nobody_asked_is_nobody_shown(hand_prepared: str) -> None:
    data = PreparedData.open(hand_prepared)
    questions = make_questions(data, "valid", EvaluateConfig())
    questions = type(questions)(questions.users[:0], questions.targets, questions.excluded, questions.given, questions.train_count_N)
    ranked = rank_users(VectorRanker.of(popularity_scorer(data), questions, EvaluateConfig()), questions, whole_catalogue(5), 3)["all"]
    assert make_examples(data, questions, ranked) == []


@pytest.mark.long
def test_pictures_are_made_small(tiny_prepared: str) -> None:
    from PIL import Image

    data = PreparedData.open(tiny_prepared)
    found = thumbnails(data, np.arange(data.num_items))
    assert 0 < len(found) < data.num_items  # some items have no picture
    sizes = {Image.open(io.BytesIO(picture)).size for picture in found.values()}
    assert all(max(size) <= SIDE_PIXELS for size in sizes)
    assert torch.tensor([len(picture) for picture in found.values()]).max() < 10_000
