"""What encoders of tags and of feature columns promise beside the contract."""

import json

import pytest
import torch

from medley.encoders import stack_inputs
from medley.encoders.features import FeaturesConfig
from medley.encoders.tags import TagsConfig
from tests.encoder_cases import FEATURES, TAGS, Case


def test_tags_are_averaged_and_unknown_ones_ignored():
    case = Case(TagsConfig(column="tags", dimension=4, min_items=1), TAGS)
    encoder, number = case.encoder, case.encoder.number_of_tag
    vectors = encoder(stack_inputs([encoder.prepare(value) for value in (["sea", "fish"], ["sea", "never seen", "fish"], ["never seen"], [])]))
    assert torch.allclose(vectors[0], (encoder.embedding.weight[number["sea"]] + encoder.embedding.weight[number["fish"]]) / 2)
    assert torch.equal(vectors[1], vectors[0])
    assert vectors[2:].abs().max() == 0


def test_the_tag_vocabulary_is_counted_by_items_with_ties_by_name():
    values = [["b", "b", "c", None], ["a", "c"], ["a", "d", None], ["b"]]  # a null among the tags counts for nothing
    assert json.loads(TagsConfig(column="t", min_items=2).learn(values)["vocabulary.json"]) == ["a", "b", "c"]


def test_features_are_normalised_by_the_train_statistics():
    # First feature: mean 2, deviation sqrt((4 + 0 + 1 + 9) / 4); the second never varies and becomes 0.
    case = Case(FeaturesConfig(column="v"), FEATURES)
    vectors = case.encoder(stack_inputs([case.encoder.prepare([5.0, 10.0, 1.75])]))
    assert vectors[0].tolist() == pytest.approx([3 / 3.5**0.5, 0.0, 0.0], abs=1e-6)
    raw = Case(FeaturesConfig(column="v", normalise=False), FEATURES)
    assert raw.encoder(raw.inputs()).tolist() == FEATURES
