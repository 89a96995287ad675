"""The model by hand: what counts, what does not, and scores worked out on paper."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from medley.encoders.features import FeaturesConfig
from medley.encoders.tags import TagsConfig
from medley.fusion.gated import GatedFusionConfig
from medley.heads.mf import MatrixFactorisationConfig
from medley.model import ItemIdConfig, ModelConfig, RecommenderModel, build_model, encode_rows, place_rows
from medley.schema import Batch
from medley.users.history_mean import HistoryMeanUserConfig

ASSETS = {"vector": {"statistics.json": b'{"mean": [0, 0], "deviation": [1, 1]}'}, "tags": {"vocabulary.json": b'["a", "b"]'}}
FEATURES = FeaturesConfig(column="vector", normalise=False)
TRAIN_COUNT_N = torch.tensor([4, 2, 0])


def batch(inputs: dict[str, dict[str, Tensor]], present: dict[str, list[bool]], items: tuple[int, ...] = (0, 1, 2), **changes: Any) -> Batch:
    """Two rows, of users 1 and 0, over all three items."""
    values: dict[str, Any] = {
        "place": (0, 0, 0),
        "user_index_B": torch.tensor([1, 0]),
        "item_position_B": torch.tensor([0, 2]),
        "row_weight_B": torch.ones(2),
        "value_B": torch.zeros(2),
        "item_index_U": torch.tensor(items),
        "inputs": inputs,
        "present_mask_U": {name: torch.tensor(mask) for name, mask in present.items()},
        "known_positive_mask_BU": torch.zeros(2, len(items), dtype=torch.bool),
        "history_position_BL": torch.tensor([[0, 2], [1, 0]]),
        "history_mask_BL": torch.tensor([[True, True], [True, False]]),
    }
    return Batch(**{**values, **changes})


def build(**config: Any) -> RecommenderModel:
    torch.manual_seed(0)
    return build_model(
        ModelConfig(dimension=2, **config),
        ASSETS,
        train_count_N=TRAIN_COUNT_N,
        user_train_count_V=torch.tensor([3, 3]),
        num_categories={},
        mean_value=0.5,
        pretrained=True,
    ).eval()


NOTHING = batch({}, {})
VECTORS = {"vector": {"features": torch.tensor([[1.0, 3.0], [8.0, 2.0], [0.0, 4.0]])}}
ALL_PRESENT = {"vector": [True, True, True]}


def test_rows_are_placed_at_the_present_items():
    placed_UD = place_rows(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([False, True, False, True]))
    assert placed_UD.tolist() == [[0, 0], [1, 2], [0, 0], [3, 4]]


def test_with_none_present_the_dummy_counts_nothing_but_takes_part():
    vectors_PD = torch.tensor([[1.0, 2.0]], requires_grad=True)
    placed_UD = place_rows(vectors_PD, torch.zeros(3, dtype=torch.bool))
    assert placed_UD.tolist() == [[0.0, 0.0]] * 3
    placed_UD.sum().backward()
    assert vectors_PD.grad.tolist() == [[0.0, 0.0]]


def test_scores_without_encoders_are_matrix_factorisation():
    model = build(head=MatrixFactorisationConfig(user_bias=True))
    with torch.no_grad():
        model.item_id.weight.copy_(torch.tensor([[1.0, 0.0], [2.0, 3.0], [100.0, 100.0]]))
        model.users.embedding.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
        model.head.item_bias.weight.copy_(torch.tensor([[0.1], [0.2], [100.0]]))
        model.head.user_bias.weight.copy_(torch.tensor([[10.0], [20.0]]))
    scores_BU, *_ = model(NOTHING)
    # Item 2 was never in training: its free vector and bias count nothing. μ is 0.5.
    expected = torch.tensor([[0 + 0.1 + 20.5, 6 + 0.2 + 20.5, 20.5], [1 + 0.1 + 10.5, 5 + 0.2 + 10.5, 10.5]])
    assert torch.allclose(scores_BU, expected)


def with_plain_tokens(**config: Any) -> RecommenderModel:
    """A model whose only modality is layer-normalised and nothing else; free vectors are (10, 20) for every item."""
    model = build(encoders={"vector": FEATURES}, fusion=GatedFusionConfig(modality_dropout=0.0), **config)
    with torch.no_grad():
        model.fusion.tokens.project["vector"][1].weight.copy_(torch.eye(2))
        model.fusion.tokens.project["vector"][1].bias.zero_()
        if model.item_id is not None:
            model.item_id.weight.copy_(torch.tensor([[10.0, 20.0]] * 3))
    return model


def test_an_item_vector_is_its_fused_content_plus_its_free_vector():
    model = with_plain_tokens()
    vectors_UD, bias_U = model(batch(VECTORS, ALL_PRESENT), want="items")
    assert torch.allclose(vectors_UD, torch.tensor([[9.0, 21.0], [11.0, 19.0], [-1.0, 1.0]]), atol=1e-4)
    assert bias_U.tolist() == [0.0, 0.0, 0.0]


def test_scores_with_content_and_history_are_those_on_paper():
    model = with_plain_tokens(users=HistoryMeanUserConfig(), item_id=None)
    made = batch(VECTORS, ALL_PRESENT)
    scores_BU, *_ = model(made)
    # Items (-1, 1), (1, -1), (-1, 1). Row 0 had items 0 and 2, so p = (-1, 1); row 1 had item 1, so p = (1, -1). μ is 0.5.
    assert torch.allclose(scores_BU, torch.tensor([[2.5, -1.5, 2.5], [-1.5, 2.5, -1.5]]), atol=1e-4)
    users_BD, bias_B = model(made, want="users")
    assert torch.allclose(users_BD, torch.tensor([[-1.0, 1.0], [1.0, -1.0]]), atol=1e-4)
    assert bias_B.tolist() == [0.0, 0.0]


def test_an_item_of_another_place_in_the_batch_keeps_its_vector():
    model = with_plain_tokens()
    turned = batch({"vector": {"features": VECTORS["vector"]["features"].flip(0)}}, ALL_PRESENT, items=(2, 1, 0))
    assert torch.allclose(model(turned, want="items")[0].flip(0), model(batch(VECTORS, ALL_PRESENT), want="items")[0])


def test_a_missing_modality_leaves_the_other_items_vectors_unchanged():
    model = build(encoders={"vector": FEATURES, "tags": TagsConfig(column="tags", dimension=3)})
    tags = {"tag_ids": torch.tensor([[1], [2], [1]])}
    whole = batch({**VECTORS, "tags": tags}, {**ALL_PRESENT, "tags": [True, True, True]})
    rows = {"features": VECTORS["vector"]["features"][[0, 2]]}
    without = batch({"vector": rows, "tags": tags}, {"vector": [True, False, True], "tags": [True, True, True]})
    before_UD, after_UD = model(whole, want="items")[0], model(without, want="items")[0]
    assert torch.allclose(after_UD[[0, 2]], before_UD[[0, 2]])
    assert not torch.allclose(after_UD[1], before_UD[1])


def test_a_modality_that_no_item_has_runs_on_a_dummy_that_does_not_matter():
    model = build(encoders={"vector": FEATURES, "tags": TagsConfig(column="tags", dimension=3)})
    masks = {**ALL_PRESENT, "tags": [False, False, False]}
    dummies = [{"tag_ids": torch.tensor([[number]])} for number in (0, 1)]
    first, second = (model(batch({**VECTORS, "tags": dummy}, masks), want="items")[0] for dummy in dummies)
    assert torch.equal(first, second)
    model.train()
    model(batch({**VECTORS, "tags": dummies[1]}, masks))[0].sum().backward()
    assert model.encoders["tags"].embedding.weight.grad is not None


def test_an_untrained_items_free_vector_is_neither_used_nor_trained():
    model = with_plain_tokens()
    scores_BU, *_ = model(batch(VECTORS, ALL_PRESENT))
    scores_BU.sum().backward()
    assert not model.item_id.weight.grad[2].any()
    assert not model.head.item_bias.weight.grad[2].any()
    assert model.item_id.weight.grad[:2].all()


def test_free_vectors_are_dropped_only_in_training_and_at_the_stated_rate():
    model = with_plain_tokens(item_id=ItemIdConfig(dropout=0.25))
    num_items = 4000
    features = {"vector": {"features": torch.tensor([[1.0, 3.0]]).expand(num_items, 2)}}
    made = batch(features, {"vector": [True] * num_items}, items=(0,) * num_items)
    assert model(made, want="items")[0].round().unique(dim=0).tolist() == [[9.0, 21.0]]
    model.train()
    rows, counts = model(made, want="items")[0].round().unique(dim=0, return_counts=True)
    assert rows.tolist() == [[-1.0, 1.0], [9.0, 21.0]]
    assert counts[0].item() / num_items == pytest.approx(0.25, abs=0.03)


def test_without_content_free_vectors_are_never_dropped():
    model = build(item_id=ItemIdConfig(dropout=0.9)).train()
    assert model.id_dropout == 0.0


def test_free_vectors_start_small_beside_content_and_larger_alone():
    torch.manual_seed(0)
    counts = {"train_count_N": torch.ones(2000), "user_train_count_V": torch.ones(1), "num_categories": {}, "mean_value": 0.0, "pretrained": True}
    alone = build_model(ModelConfig(dimension=4), {}, **counts)
    beside = build_model(ModelConfig(dimension=4, encoders={"vector": FEATURES}), ASSETS, **counts)
    assert alone.item_id.weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert beside.item_id.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_the_first_weights_are_decided_by_the_seed():
    config = {"encoders": {"vector": FEATURES, "tags": TagsConfig(column="tags", dimension=3)}}
    first, second = build(**config).state_dict(), build(**config).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_encoders_meet_few_row_counts_and_spare_rows_leave_no_trace():
    seen: list[int] = []

    def encoder(inputs: Mapping[str, Tensor]) -> Tensor:
        seen.append(len(inputs["x"]))
        return inputs["x"] * 2 + 1

    for num_rows in range(1, 600):
        rows = torch.arange(num_rows * 3, dtype=torch.float32).view(num_rows, 3).requires_grad_()
        vectors = encode_rows(encoder, {"x": rows})
        assert torch.equal(vectors, rows * 2 + 1)
        assert num_rows <= seen[-1] <= num_rows * 17 / 16
    assert len(set(seen)) < 31 + 16 * 5
