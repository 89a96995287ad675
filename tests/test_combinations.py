"""Every fusion, user model, head and loss goes with every other: each pair of kinds builds, trains two steps and ends in a scorer."""

from itertools import combinations, product
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from medley.encoders.features import FeaturesConfig
from medley.encoders.tags import TagsConfig
from medley.fusion import FusionConfig
from medley.heads import HeadConfig
from medley.heads.mf import MatrixFactorisationConfig
from medley.losses import LossConfig, batch_loss
from medley.losses.settings import AlignmentConfig
from medley.model import ModelConfig, RecommenderModel, build_model
from medley.schema import Batch
from medley.training.config import OptimizerConfig
from medley.training.engine import TorchEngine
from medley.users import UserConfig
from medley.users.attributes import AttributesUserConfig
from medley.users.history_mean import HistoryMeanUserConfig
from medley.users.id import IdUserConfig

ASSETS = {"vector": {"statistics.json": b'{"mean": [0, 0, 0], "deviation": [1, 1, 1]}'}, "tags": {"vocabulary.json": b'["a", "b"]'}}
ENCODERS = {"vector": FeaturesConfig(column="vector"), "tags": TagsConfig(column="tags", dimension=3)}
TRAIN_COUNT_N = torch.tensor([4, 2, 3, 1, 0])
WITH_SETTINGS: dict[str, dict[str, Any]] = {
    "attributes": {"columns": ("age",)},
    "sum": {"parts": (IdUserConfig(), AttributesUserConfig(columns=("age",)), HistoryMeanUserConfig())},
}


def members(union: Any) -> list[Any]:
    """One configuration of each kind of a union."""
    kinds = get_args(get_args(union)[0])
    return [kind(**WITH_SETTINGS.get(kind.model_fields["kind"].default, {})) for kind in kinds]


HEADS = [MatrixFactorisationConfig(cosine=True, learned_scale=True, user_bias=True), *members(HeadConfig)]
ROOMS = {"fusion": members(FusionConfig), "users": members(UserConfig), "head": HEADS, "loss": members(LossConfig)}


def batch() -> Batch:
    """Three rows and one of padding, of four users, over five items; the last one is cold and has no modality."""
    generator = torch.Generator().manual_seed(0)
    return Batch(
        place=(0, 0, 0),
        user_index_B=torch.tensor([1, 0, 3, 0]),
        item_position_B=torch.tensor([0, 2, 1, 0]),
        row_weight_B=torch.tensor([1.0, 1.0, 2.0, 0.0]),
        value_B=torch.tensor([1.0, 3.0, 5.0, 0.0]),
        item_index_U=torch.arange(5),
        inputs={"vector": {"features": torch.randn(3, 3, generator=generator)}, "tags": {"tag_ids": torch.tensor([[1, 2], [2, 0], [1, 0]])}},
        present_mask_U={"vector": torch.tensor([True, False, True, True, False]), "tags": torch.tensor([True, True, False, True, False])},
        known_positive_mask_BU=torch.tensor([[True, True, False, False, False], [False, False, True, False, False]] * 2),
        history_position_BL=torch.tensor([[1, 3], [0, 0], [2, 0], [0, 0]]),
        history_mask_BL=torch.tensor([[True, True], [True, False], [True, True], [False, False]]),
        attributes_B={"age": torch.tensor([0, 1, 2, 0])},
        uniform_negative_mask_U=torch.tensor([False, False, False, True, False]),
    )


def build(config: ModelConfig) -> RecommenderModel:
    torch.manual_seed(0)
    counts = {"train_count_N": TRAIN_COUNT_N, "user_train_count_V": torch.tensor([3, 3, 2, 2])}
    return build_model(config, ASSETS, **counts, num_categories={"age": 3}, mean_value=0.5, pretrained=True)


def train_two_steps(model: RecommenderModel, loss: Any) -> list[float]:
    engine = TorchEngine(model.train(), OptimizerConfig(learning_rate=1e-3), dict.fromkeys(ENCODERS), num_micro_batches=1)
    losses = []
    for step in range(3):
        torch.manual_seed(step)
        value = batch_loss(loss, engine.forward(batch()), batch(), TRAIN_COUNT_N, num_interactions=10, micro_batch_size=4)
        losses.append(value.item())
        if step < 2:
            engine.backward(value)
            engine.step(1.0)
    return losses


def check(choice: dict[str, Any]) -> None:
    """Two steps leave everything finite and move something; the scores are those of the scorer that serving gets."""
    loss = choice.pop("loss").model_copy(update={"alignment": AlignmentConfig()})
    model = build(ModelConfig(dimension=4, encoders=ENCODERS, **choice))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert all(parameter.ndim for parameter in model.parameters())  # DeepSpeed cannot share out a weight without a dimension
    losses = train_two_steps(model, loss)
    assert all(torch.isfinite(torch.tensor(losses)))
    assert all(weight.isfinite().all() for weight in model.state_dict().values())
    assert any(not torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        scores_BU: Tensor = model(batch())[0]
        (item_vectors_UD, item_bias_U), (user_vectors_BD, user_bias_B) = (model(batch(), want=want) for want in ("items", "users"))
    served_BU = user_vectors_BD @ item_vectors_UD.T + user_bias_B[:, None] + item_bias_U + model.head.global_bias
    assert torch.allclose(served_BU, scores_BU, atol=1e-5)


@pytest.mark.parametrize(("first", "second"), list(combinations(ROOMS, 2)))
def test_every_pair_of_kinds_trains_and_ends_in_a_scorer(first: str, second: str):
    for pair in product(ROOMS[first], ROOMS[second]):
        choice = {name: kinds[-1] for name, kinds in ROOMS.items()} | dict(zip((first, second), pair, strict=True))
        print({name: config.kind for name, config in choice.items()})
        check(choice)


def test_the_weights_of_modalities_are_readable():
    model = build(ModelConfig(dimension=4, encoders=ENCODERS)).eval()
    weights_UM = model.modality_weights(batch())  # tags, vector
    assert (weights_UM > 0).tolist() == [[True, True], [True, False], [False, True], [True, True], [False, False]]
    assert weights_UM.sum(dim=1).tolist() == pytest.approx([1, 1, 1, 1, 0], abs=1e-6)


FEATURES = {"kind": "features", "column": "v"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": {"kind": "attention", "num_heads": 3}}, "a dimension that num_heads=3 of kind 'attention' divides"),
        ({"users": {"kind": "sum", "parts": [{"kind": "transformer", "num_heads": 3}]}}, "a dimension that num_heads=3 of kind 'transformer' divides"),
        ({"dimension": 1, "fusion": {"kind": "late"}}, "a dimension of 2 or more"),
        ({"item_id": {"neighbours": {}}}, "an encoder with cache: true where item_id.neighbours is set"),
        ({"propagation": {}, "users": {"kind": "history_mean"}}, "users.kind id and item_id"),
        ({"propagation": {}, "item_id": None}, "users.kind id and item_id"),
    ],
)
def test_parts_that_do_not_go_together_are_refused_at_the_door(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate({"dimension": 64, "encoders": {"one": FEATURES, "other": FEATURES}, **changes})
