"""The contract of user models over every member of the union, and their formulas by hand."""

from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from medley.users import UserConfig
from medley.users.attributes import AttributesUserConfig
from medley.users.history_mean import HistoryMeanUserConfig
from medley.users.id import IdUserConfig
from medley.users.sum import SumUserConfig

MEMBERS = get_args(get_args(UserConfig)[0])
PARTS = (IdUserConfig(), AttributesUserConfig(columns=("age", "country")), HistoryMeanUserConfig(history_length=5))
CASES: dict[type, Any] = {**{type(part): part for part in PARTS}, SumUserConfig: SumUserConfig(parts=PARTS)}
TRAIN_COUNT_V = torch.tensor([3, 0, 1, 2])
NUM_CATEGORIES = {"age": 3, "country": 4, "unused": 9}
DIMENSION = 2

USERS_B = torch.tensor([2, 0, 1])
ATTRIBUTES_B = {"age": torch.tensor([1, 0, 2]), "country": torch.tensor([3, 3, 0])}
HISTORY_BLD = torch.tensor([[[1.0, 2.0], [3.0, 6.0]], [[5.0, 7.0], [100.0, 100.0]], [[100.0, 100.0], [100.0, 100.0]]])
HISTORY_MASK_BL = torch.tensor([[True, True], [True, False], [False, False]])


def build(config: Any) -> nn.Module:
    torch.manual_seed(0)
    return config.build(TRAIN_COUNT_V, NUM_CATEGORIES, DIMENSION)


def run(model: nn.Module) -> Tensor:
    return model(USERS_B, ATTRIBUTES_B, HISTORY_BLD, HISTORY_MASK_BL)


@pytest.fixture(params=MEMBERS, ids=lambda member: member.__name__)
def config(request: pytest.FixtureRequest) -> Any:
    assert request.param in CASES, f"add a case for {request.param.__name__} to CASES"
    return CASES[request.param]


def test_every_user_gets_a_finite_vector_and_a_row_does_not_depend_on_the_others(config: Any):
    model = build(config)
    vectors_BD = run(model)
    assert vectors_BD.shape == (3, DIMENSION)
    assert torch.isfinite(vectors_BD).all()
    alone = model(USERS_B[1:2], {name: values[1:2] for name, values in ATTRIBUTES_B.items()}, HISTORY_BLD[1:2], HISTORY_MASK_BL[1:2])
    assert torch.allclose(alone[0], vectors_BD[1])


def test_what_stands_under_padding_does_not_matter(config: Any):
    model = build(config)
    changed_BLD = torch.where(HISTORY_MASK_BL.unsqueeze(-1), HISTORY_BLD, torch.tensor(-7.0))
    assert torch.equal(model(USERS_B, ATTRIBUTES_B, changed_BLD, HISTORY_MASK_BL), run(model))


def test_gradient_reaches_every_parameter(config: Any):
    model = build(config)
    run(model).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


def test_columns_and_history_length_are_stated(config: Any):
    expected = {"id": ((), 0), "attributes": (("age", "country"), 0), "history_mean": ((), 5), "sum": (("age", "country"), 5)}
    assert (config.columns, config.history_length) == expected[config.kind]


def test_users_without_training_start_at_zero():
    weight = build(IdUserConfig()).embedding.weight
    assert weight[1].tolist() == [0.0, 0.0]
    assert (weight[[0, 2, 3]] != 0).all()


def test_id_vectors_have_the_stated_deviation():
    torch.manual_seed(0)
    weight = IdUserConfig(initial_deviation=0.5).build(torch.ones(2000), {}, 8).embedding.weight
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
    assert [type(part).__name__ for part in model.parts] == ["IdUser", "AttributesUser", "HistoryMeanUser"]


def test_a_sum_of_nothing_and_attributes_without_columns_are_refused():
    with pytest.raises(ValidationError):
        SumUserConfig(parts=())
    with pytest.raises(ValidationError):
        AttributesUserConfig(columns=())
