"""The contract of user models over every member of the union, and their formulas by hand."""

from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from medley.users import UserConfig
from medley.users.attributes import AttributesUserConfig
from medley.users.autoencoder import AutoencoderUserConfig
from medley.users.fields import recencies
from medley.users.history_attention import HistoryAttentionUserConfig
from medley.users.history_mean import HistoryMeanUserConfig
from medley.users.history_weighted import HistoryWeightedUserConfig
from medley.users.id import IdUserConfig
from medley.users.sum import SumUserConfig, most_recent
from medley.users.transformer import TransformerUserConfig

MEMBERS = get_args(get_args(UserConfig)[0])
PARTS = (
    IdUserConfig(),
    AttributesUserConfig(columns=("age", "country")),
    HistoryMeanUserConfig(history_length=5),
    HistoryWeightedUserConfig(history_length=5),
    HistoryAttentionUserConfig(history_length=5),
    TransformerUserConfig(history_length=5),
    AutoencoderUserConfig(history_length=5, hidden_dimension=6),
)
CASES: dict[type, Any] = {**{type(part): part for part in PARTS}, SumUserConfig: SumUserConfig(parts=PARTS)}
TRAIN_COUNT_V = torch.tensor([3, 0, 1, 2])
NUM_CATEGORIES = {"age": 3, "country": 4, "unused": 9}
NUM_ITEMS = 9
DIMENSION = 2

USERS_B = torch.tensor([2, 0, 1])
ATTRIBUTES_B = {"age": torch.tensor([1, 0, 2]), "country": torch.tensor([3, 3, 0])}
HISTORY_BLD = torch.tensor([[[1.0, 2.0], [3.0, 6.0]], [[5.0, 7.0], [100.0, 100.0]], [[100.0, 100.0], [100.0, 100.0]]])
HISTORY_INDEX_BL = torch.tensor([[3, 8], [1, 0], [0, 0]])
HISTORY_MASK_BL = torch.tensor([[True, True], [True, False], [False, False]])


def build(config: Any) -> nn.Module:
    torch.manual_seed(0)
    return config.build(TRAIN_COUNT_V, NUM_CATEGORIES, NUM_ITEMS, DIMENSION).eval()


def run(model: nn.Module, history_BLD: Tensor = HISTORY_BLD, history_index_BL: Tensor = HISTORY_INDEX_BL) -> Tensor:
    """User vectors: the sum of the fields."""
    fields_BFD, penalty_B = model(USERS_B, ATTRIBUTES_B, history_BLD, history_index_BL, HISTORY_MASK_BL)
    assert penalty_B.shape == (3,)
    return fields_BFD.sum(dim=1)


@pytest.fixture(params=MEMBERS, ids=lambda member: member.__name__)
def config(request: pytest.FixtureRequest) -> Any:
    assert request.param in CASES, f"add a case for {request.param.__name__} to CASES"
    return CASES[request.param]


def test_every_user_gets_a_finite_vector_and_a_row_does_not_depend_on_the_others(config: Any):
    model = build(config)
    vectors_BD = run(model)
    assert vectors_BD.shape == (3, DIMENSION)
    assert torch.isfinite(vectors_BD).all()
    attributes_B = {name: values[1:2] for name, values in ATTRIBUTES_B.items()}
    fields_BFD, _ = model(USERS_B[1:2], attributes_B, HISTORY_BLD[1:2], HISTORY_INDEX_BL[1:2], HISTORY_MASK_BL[1:2])
    assert torch.allclose(fields_BFD.sum(dim=1)[0], vectors_BD[1], atol=1e-6)


def test_what_stands_under_padding_does_not_matter(config: Any):
    model = build(config)
    changed_BLD = torch.where(HISTORY_MASK_BL.unsqueeze(-1), HISTORY_BLD, torch.tensor(-7.0))
    changed_index_BL = torch.where(HISTORY_MASK_BL, HISTORY_INDEX_BL, torch.tensor(4))
    assert torch.equal(run(model, changed_BLD, changed_index_BL), run(model))


def test_a_longer_padding_does_not_matter(config: Any):
    model = build(config)
    pad = nn.functional.pad
    longer = model(USERS_B, ATTRIBUTES_B, pad(HISTORY_BLD, (0, 0, 0, 4)), pad(HISTORY_INDEX_BL, (0, 4)), pad(HISTORY_MASK_BL, (0, 4)))
    assert torch.allclose(longer[0].sum(dim=1), run(model), atol=1e-6)


def test_an_empty_history_gives_zeros(config: Any):
    if config.history_length and config.kind != "sum":
        assert run(build(config))[2].tolist() == [0.0, 0.0]


def test_gradient_reaches_every_parameter(config: Any):
    model = build(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    run(model.train()).pow(3).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


def test_columns_and_history_length_are_stated(config: Any):
    with_columns, without_history = ("attributes", "sum"), ("id", "attributes")
    assert config.columns == (("age", "country") if config.kind in with_columns else ())
    assert config.history_length == (0 if config.kind in without_history else 5)


def test_users_without_training_start_at_zero():
    weight = build(IdUserConfig()).embedding.weight
    assert weight[1].tolist() == [0.0, 0.0]
    assert (weight[[0, 2, 3]] != 0).all()


def test_id_vectors_have_the_stated_deviation():
    torch.manual_seed(0)
    weight = IdUserConfig(initial_deviation=0.5).build(torch.ones(2000), {}, 9, 8).embedding.weight
    assert weight.std().item() == pytest.approx(0.5, rel=0.03)


def test_an_id_vector_is_the_users_row():
    model = build(IdUserConfig())
    assert torch.equal(run(model), model.embedding.weight[[2, 0, 1]])


def test_attribute_vectors_are_added_and_unknown_has_its_own():
    model = build(AttributesUserConfig(columns=("country", "age")))
    age, country = (embedding.weight for embedding in model.embeddings)
    assert (age.shape, country.shape) == ((3, 2), (4, 2))
    assert torch.equal(run(model), torch.stack([age[1] + country[3], age[0] + country[3], age[2] + country[0]]))
    assert age[0].any()


def test_the_history_vector_is_the_mean_of_the_real_items():
    assert run(build(HistoryMeanUserConfig())).tolist() == [[2.0, 4.0], [5.0, 7.0], [0.0, 0.0]]


def test_the_history_mean_goes_through_the_linear_layer():
    model = build(HistoryMeanUserConfig())
    with torch.no_grad():
        model.project.weight.copy_(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    assert run(model).tolist() == [[4.0, 4.0], [7.0, 10.0], [0.0, 0.0]]


def test_a_sum_is_the_sum_of_its_parts():
    model = build(SumUserConfig(parts=PARTS))
    assert torch.allclose(run(model), sum(run(part) for part in model.parts))
    fields_BFD, _ = model(USERS_B, ATTRIBUTES_B, HISTORY_BLD, HISTORY_INDEX_BL, HISTORY_MASK_BL)
    assert fields_BFD.shape == (3, len(PARTS) + 1, DIMENSION)  # one field for each, attributes have two


def test_a_part_of_a_sum_sees_the_history_as_long_as_it_asked_for():
    parts = (HistoryMeanUserConfig(history_length=1), HistoryMeanUserConfig(history_length=5))
    # The most recent item of user 0 is (3, 6), the mean of both is (2, 4).
    assert run(build(SumUserConfig(parts=parts))).tolist() == [[3 + 2.0, 6 + 4.0], [10.0, 14.0], [0.0, 0.0]]


def test_the_most_recent_items_are_cut_out_of_histories_of_any_length():
    index_BL = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [7, 0, 0, 0], [0, 0, 0, 0]])
    mask_BL = index_BL > 0
    vectors_BLD, index_BL, mask_BL = most_recent(2, index_BL.unsqueeze(-1).float(), index_BL, mask_BL)
    assert torch.where(mask_BL, index_BL, -1).tolist() == [[3, 4], [5, 6], [7, -1], [-1, -1]]
    assert torch.equal(vectors_BLD.squeeze(-1).long(), index_BL)


def test_recency_counts_from_the_newest_item():
    mask_BL = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    assert recencies(mask_BL).tolist() == [[2, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_history_weights_are_a_softmax_of_recency_and_item():
    model = build(HistoryWeightedUserConfig(history_length=5))
    assert run(model).tolist() == [[2.0, 4.0], [5.0, 7.0], [0.0, 0.0]]  # at first the mean
    with torch.no_grad():
        model.recency_weight.weight[1] = torch.log(torch.tensor(2.0))  # the one before the last
        model.item_weight_embedding.weight[3] = torch.log(torch.tensor(1.5))  # which is item 3: weights 3/4 and 1/4
    assert torch.allclose(run(model)[0], torch.tensor([0.75 + 0.75, 1.5 + 1.5]))


def test_attention_over_a_history_is_its_mean_where_the_query_prefers_nothing():
    model = build(HistoryAttentionUserConfig(history_length=5))
    with torch.no_grad():
        model.query.weight.zero_()
        model.recency.weight.zero_()
        for layer in (model.attention.value, model.attention.output):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
    assert torch.allclose(run(model), torch.tensor([[2.0, 4.0], [5.0, 7.0], [0.0, 0.0]]), atol=1e-5)


def test_the_autoencoder_reads_the_sum_of_its_items_rows():
    model = build(AutoencoderUserConfig(hidden_dimension=2, kl_weight=0.0))
    model.hidden_norm = nn.Identity()
    with torch.no_grad():
        model.item_embedding.weight[[1, 3, 8]] = torch.tensor([[0.5, 0.0], [1.0, 0.0], [2.0, 1.0]])
        model.encode.weight.copy_(torch.eye(2))
        model.encode.bias.copy_(torch.tensor([10.0, 20.0]))
    expected = torch.tensor([[3.0, 1.0], [0.5, 0.0]]).tanh() + torch.tensor([10.0, 20.0])
    assert torch.allclose(run(model)[:2], expected)


def test_the_autoencoders_penalty_is_the_divergence_from_a_normal_distribution():
    model = build(AutoencoderUserConfig(hidden_dimension=2, kl_weight=0.1))
    with torch.no_grad():
        model.encode.weight.zero_()
        model.encode.bias.copy_(torch.tensor([1.0, 2.0, 0.0, float(torch.log(torch.tensor(4.0)))]))  # mean (1, 2), variance (1, 4)
    _, penalty_B = model(USERS_B, ATTRIBUTES_B, HISTORY_BLD, HISTORY_INDEX_BL, HISTORY_MASK_BL)
    # 1/2 (1² + 1 - 1 - 0) + 1/2 (2² + 4 - 1 - log 4); without a history mean 0 and variance 1.
    expected = 0.1 * (0.5 + 0.5 * (7 - float(torch.log(torch.tensor(4.0)))))
    assert penalty_B.tolist() == pytest.approx([expected, expected, 0.0])


def share_found(config: Any, target_of: Any, num_steps: int = 250) -> float:
    """How often the item that a rule derives from a random history is ranked first, for histories that training did not see."""
    num_items, length, dimension = 12, 5, 24
    torch.manual_seed(0)
    histories_BL = torch.rand(2400, num_items).topk(length, dim=1).indices
    targets_B = target_of(histories_BL)
    items = nn.Embedding(num_items, dimension)
    nn.init.normal_(items.weight, std=0.3)
    out = nn.Embedding(num_items, dimension)
    model = config.build(torch.ones(1), {}, num_items, dimension)
    optimizer = torch.optim.Adam([*model.parameters(), *items.parameters(), *out.parameters()], lr=0.01)

    def scores(rows: Tensor) -> Tensor:
        index_BL = histories_BL[rows]
        fields_BFD, _ = model(torch.zeros(len(rows), dtype=torch.int64), {}, items(index_BL), index_BL, torch.ones_like(index_BL, dtype=torch.bool))
        return fields_BFD.sum(dim=1) @ out.weight.T

    for step in range(num_steps):
        rows = torch.arange(step * 128, step * 128 + 128) % 2000
        optimizer.zero_grad()
        nn.functional.cross_entropy(scores(rows), targets_B[rows]).backward()
        optimizer.step()
    model.eval()
    return (scores(torch.arange(2000, 2400)).argmax(dim=1) == targets_B[2000:]).float().mean().item()


def after_the_last(histories_BL: Tensor) -> Tensor:
    """Each item has one successor: only the last item says what comes."""
    return (5 * histories_BL[:, -1] + 7) % 12


def test_the_transformer_finds_a_pattern_in_the_order_which_a_mean_cannot():
    transformer = share_found(TransformerUserConfig(history_length=5, num_layers=1), after_the_last)
    mean = share_found(HistoryMeanUserConfig(history_length=5), after_the_last)
    print(f"after the last: transformer {transformer:.3f}, mean {mean:.3f}")
    assert transformer > 0.9
    assert mean < 0.4  # one of the five, at best


def test_learned_weights_find_which_place_matters_and_attention_does_too():
    weighted = share_found(HistoryWeightedUserConfig(history_length=5), after_the_last)
    attention = share_found(HistoryAttentionUserConfig(history_length=5), after_the_last)
    print(f"after the last: weighted {weighted:.3f}, attention {attention:.3f}")
    assert min(weighted, attention) > 0.6


def pair_of_kinds(histories_BL: Tensor) -> Tensor:
    """Whether item 0 and item 1 are both there or both not: no sum over items can say it."""
    has_0, has_1 = ((histories_BL == item).any(dim=1) for item in (0, 1))
    return (has_0 == has_1).long()


def test_the_autoencoder_finds_a_combination_of_items_which_a_mean_cannot():
    deep = share_found(AutoencoderUserConfig(history_length=5, hidden_dimension=32, dropout=0.0, kl_weight=0.001), pair_of_kinds)
    mean = share_found(HistoryMeanUserConfig(history_length=5), pair_of_kinds)
    print(f"combination: autoencoder {deep:.3f}, mean {mean:.3f}")
    assert deep > 0.9
    assert mean < 0.75


def test_a_sum_of_nothing_and_attributes_without_columns_are_refused():
    with pytest.raises(ValidationError):
        SumUserConfig(parts=())
    with pytest.raises(ValidationError):
        AttributesUserConfig(columns=())
