"""The contract of losses over every member of the union: what a micro-batch costs, whatever the kind."""

from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from medley.losses import LossConfig, batch_loss
from medley.losses.alignment import alignment_loss
from medley.losses.pairwise import BprConfig
from medley.losses.settings import AlignmentConfig
from medley.losses.softmax import FullSoftmaxConfig, InBatchSoftmaxConfig
from medley.schema import Batch

ADAPTER: TypeAdapter[LossConfig] = TypeAdapter(LossConfig)
MEMBERS = get_args(get_args(LossConfig)[0])
TRAIN_COUNT_N = torch.tensor([4, 3, 2, 1, 1, 0])
ITEMS_U = torch.tensor([0, 1, 2, 4])
"""Item 4 was drawn uniformly; item 2 is in the batch because a history names it."""


def batch(**changes: Any) -> Batch:
    """Rows of items 0 and 1, and a padding row."""
    values: dict[str, Any] = {
        "place": (0, 0, 0),
        "user_index_B": torch.tensor([0, 1, 0]),
        "item_position_B": torch.tensor([0, 1, 0]),
        "row_weight_B": torch.tensor([1.0, 2.0, 0.0]),
        "value_B": torch.tensor([3.0, 1.0, 0.0]),
        "item_index_U": ITEMS_U,
        "inputs": {},
        "present_mask_U": {},
        "known_positive_mask_BU": torch.tensor([[True, False, False, False], [False, True, False, False], [False, False, False, False]]),
        "history_position_BL": torch.zeros(3, 1, dtype=torch.int64),
        "history_mask_BL": torch.zeros(3, 1, dtype=torch.bool),
        "uniform_negative_mask_U": torch.tensor([False, False, False, True]),
    }
    return Batch(**{**values, **changes})


def output(scores_BU: Tensor, penalty_B: Tensor | None = None) -> tuple[Tensor, ...]:
    """What a model of two modalities gives."""
    tokens_UMD = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(1))
    return scores_BU, torch.zeros(3) if penalty_B is None else penalty_B, tokens_UMD, torch.ones(4, 2, dtype=torch.bool)


SCORES_BU = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def loss_of(config: Any, scores_BU: Tensor = SCORES_BU, made: Batch | None = None, **changes: Any) -> Tensor:
    return batch_loss(config, output(scores_BU, **changes), made or batch(), TRAIN_COUNT_N, num_interactions=11, micro_batch_size=2)


@pytest.fixture(params=MEMBERS, ids=lambda member: member.__name__)
def config(request: pytest.FixtureRequest) -> Any:
    return request.param()


def test_the_loss_is_finite_positive_and_pulls_the_own_item_up(config: Any):
    scores_BU = SCORES_BU.clone().requires_grad_()
    loss = loss_of(config, scores_BU)
    loss.backward()
    assert loss.item() > 0
    assert scores_BU.grad[0, 0] < 0 or config.kind == "mse"


def test_a_padding_row_costs_nothing(config: Any):
    scores_BU = SCORES_BU.clone()
    scores_BU[2] = float("nan")
    scores_BU.requires_grad_()
    loss = loss_of(config, scores_BU)
    loss.backward()
    assert loss.item() == loss_of(config).item()
    assert not scores_BU.grad[2].any()


def test_the_loss_is_the_sum_of_its_rows_times_their_weights(config: Any):
    each = [loss_of(config, made=batch(row_weight_B=torch.eye(3)[row])).item() for row in (0, 1)]
    assert loss_of(config).item() == pytest.approx(each[0] + 2 * each[1], rel=1e-5)


def test_penalties_of_the_user_model_count_by_weight(config: Any):
    more = loss_of(config, penalty_B=torch.tensor([1.0, 10.0, 100.0])).item() - loss_of(config).item()
    assert more == pytest.approx(1 + 2 * 10, rel=1e-4)


def test_alignment_is_added_once_for_every_weighted_row(config: Any):
    with_alignment = config.model_copy(update={"alignment": AlignmentConfig(weight=0.5, temperature=0.3)})
    _, _, tokens_UMD, present_UM = output(SCORES_BU)
    expected = 3 * 0.5 * alignment_loss(tokens_UMD, present_UM, 0.3).item()
    assert loss_of(with_alignment).item() - loss_of(config).item() == pytest.approx(expected, rel=1e-4)


def test_bpr_and_bce_set_the_own_item_against_the_uniform_draws_alone():
    for kind in ("bpr", "bce"):
        scores_BU = SCORES_BU.clone().requires_grad_()
        loss_of(ADAPTER.validate_python({"kind": kind}), scores_BU).backward()
        assert (scores_BU.grad != 0).tolist() == [[True, False, False, True], [False, True, False, True], [False] * 4]


def test_a_known_positive_among_the_uniform_draws_is_no_negative():
    known_BU = torch.tensor([[True, False, False, True], [False, True, False, False], [False] * 4])
    scores_BU = SCORES_BU.clone().requires_grad_()
    loss_of(BprConfig(), scores_BU, batch(known_positive_mask_BU=known_BU)).backward()
    assert (scores_BU.grad != 0).tolist() == [[False] * 4, [False, True, False, True], [False] * 4]


def test_uniform_draws_join_the_in_batch_negatives_and_items_of_histories_do_not():
    scores_BU = SCORES_BU.clone().requires_grad_()
    loss_of(InBatchSoftmaxConfig(num_uniform_negatives=1), scores_BU).backward()
    assert (scores_BU.grad != 0).tolist() == [[True, True, False, True], [True, True, False, True], [False] * 4]


def test_mixed_negatives_are_corrected_by_the_chance_of_either_draw():
    # 5 items are warm, so one uniform draw has each with 1/5. Counts 4, 3 and 1 of 11 in micro-batches of 2.
    inclusion_U = torch.tensor([1 - (1 - count / 11) ** 2 * (4 / 5) for count in (4, 3, 1)]).double()
    scores_BU = torch.zeros(3, 4)
    loss = loss_of(InBatchSoftmaxConfig(num_uniform_negatives=1, temperature=1.0), scores_BU)
    share_U = (1 / inclusion_U) / (1 / inclusion_U).sum()
    assert loss.item() == pytest.approx(float(-share_U[0].log() - 2 * share_U[1].log()), rel=1e-5)


@pytest.mark.parametrize("kind", ["in_batch_softmax", "full_softmax", "bpr", "bce", "mse"])
def test_kind_chooses_the_loss(kind: str):
    assert ADAPTER.validate_python({"kind": kind}).kind == kind
    assert kind in {member.model_fields["kind"].default for member in MEMBERS}
    assert len(MEMBERS) == 5


@pytest.mark.parametrize(
    "bad", [{"kind": "hinge"}, {"kind": "mse", "temperature": 1.0}, {"kind": "full_softmax", "temperature": 0.0}, {"kind": "bpr", "num_uniform_negatives": 0}]
)
def test_a_loss_config_refuses_unknown_kinds_keys_and_values(bad: dict[str, Any]):
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(bad)


def test_full_softmax_leaves_items_that_training_does_not_see_out():
    # Item 5 has no train rows.
    made = batch(item_index_U=torch.tensor([0, 1, 2, 5]))
    scores_BU = SCORES_BU.clone()
    scores_BU[:, 3] = 50.0
    without_B = -torch.log_softmax(scores_BU[:2, :3], dim=1)[[0, 1], [0, 1]]
    assert loss_of(FullSoftmaxConfig(temperature=1.0), scores_BU, made).item() == pytest.approx(float(without_B[0] + 2 * without_B[1]), rel=1e-5)
