"""The contract of fusions over every member of the union, and their formulas by hand."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from medley.fusion import FusionConfig
from medley.fusion.concat import ConcatFusionConfig
from medley.fusion.gated import GatedFusionConfig
from medley.fusion.tokens import ModalityTokens, drop_modalities

MEMBERS = get_args(get_args(FusionConfig)[0])
WIDTHS = {"text": 3, "image": 5, "audio": 2}
NUM_ITEMS, DIMENSION = 6, 4


@pytest.fixture(params=MEMBERS, ids=lambda member: member.__name__)
def fusion(request: pytest.FixtureRequest) -> nn.Module:
    """A fusion of three modalities in evaluation mode, every weight away from its first value."""
    torch.manual_seed(0)
    module = request.param().build(WIDTHS, DIMENSION)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.eval()


def vectors(seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(NUM_ITEMS, width, generator=generator) for name, width in WIDTHS.items()}


def present() -> dict[str, Tensor]:
    """Item 0 has everything, 1 to 3 lack one modality, 4 has only text, 5 nothing."""
    masks = {"text": [1, 0, 1, 1, 1, 0], "image": [1, 1, 0, 1, 0, 0], "audio": [1, 1, 1, 0, 0, 0]}
    return {name: torch.tensor(mask, dtype=torch.bool) for name, mask in masks.items()}


def test_every_item_gets_a_finite_vector_of_the_asked_width(fusion: nn.Module):
    fused_UD = fusion(vectors(), present())
    assert fused_UD.shape == (NUM_ITEMS, DIMENSION)
    assert torch.isfinite(fused_UD).all()


def test_the_vector_of_a_missing_modality_does_not_matter(fusion: nn.Module):
    masks, given = present(), vectors()
    changed = {name: torch.where(masks[name].unsqueeze(1), given[name], vectors(seed=2)[name]) for name in WIDTHS}
    assert torch.equal(fusion(changed, masks), fusion(given, masks))


def test_every_present_modality_matters(fusion: nn.Module):
    before = fusion(vectors(), present())
    for name in WIDTHS:
        after = fusion({**vectors(), name: vectors(seed=2)[name]}, present())
        assert ((after - before).abs().amax(dim=1) > 1e-6).tolist() == present()[name].tolist()


def test_an_items_vector_does_not_depend_on_the_others(fusion: nn.Module):
    together = fusion(vectors(), present())
    alone = fusion({name: rows[2:3] for name, rows in vectors().items()}, {name: mask[2:3] for name, mask in present().items()})
    assert torch.allclose(alone[0], together[2], atol=1e-6)


def test_the_order_in_which_modalities_are_named_does_not_matter(fusion: nn.Module):
    def turned(values: dict[str, Any]) -> dict[str, Any]:
        return dict(reversed(values.items()))

    assert torch.equal(fusion(turned(vectors()), turned(present())), fusion(vectors(), present()))


def test_evaluation_is_deterministic_and_training_drops_modalities(fusion: nn.Module):
    assert torch.equal(fusion(vectors(), present()), fusion(vectors(), present()))
    fusion.tokens.modality_dropout = 0.5
    assert torch.equal(fusion(vectors(), present()), fusion(vectors(), present()))
    fusion.train()
    draws = torch.stack([fusion(vectors(), present()) for _ in range(20)])
    changes = (draws - draws[:1]).abs().amax(dim=(0, 2)) > 0
    assert changes.tolist() == [True, True, True, True, False, False]  # a last modality is never dropped, and nothing cannot be


def test_gradient_reaches_every_parameter(fusion: nn.Module):
    fusion(vectors(), present()).square().sum().backward()
    assert [name for name, parameter in fusion.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


def test_an_item_keeps_at_least_one_modality_it_had():
    present_UM = torch.rand(5000, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    dropped_UM = drop_modalities(present_UM, 0.9)
    assert not (dropped_UM & ~present_UM).any()
    assert torch.equal(dropped_UM.any(dim=1), present_UM.any(dim=1))


def test_modalities_are_dropped_at_the_stated_rate():
    torch.manual_seed(0)
    counts = drop_modalities(torch.ones(20_000, 2, dtype=torch.bool), 0.5).sum(dim=1).bincount(minlength=3) / 20_000
    # Both are kept with probability 1/4, and both again where both would go: 1/2. One is left with probability 1/2.
    assert counts.tolist() == pytest.approx([0.0, 0.5, 0.5], abs=0.02)


def plain_tokens(tokens: ModalityTokens) -> None:
    """Projections that only normalise, and a missing token of (5, 7) for the second modality."""
    with torch.no_grad():
        for project in tokens.project.values():
            project[1].weight.copy_(torch.eye(2))
            project[1].bias.zero_()
        tokens.missing.weight[1] = torch.tensor([5.0, 7.0])


PAIR = {"a": torch.tensor([[1.0, 3.0], [8.0, 2.0]]), "b": torch.tensor([[9.0, 9.0], [0.0, 4.0]])}
PAIR_PRESENT = {"a": torch.tensor([True, True]), "b": torch.tensor([False, True])}
# Layer norm turns (1, 3) into (-1, 1), (8, 2) into (1, -1) and (0, 4) into (-1, 1).


def test_gated_fusion_starts_as_the_sum_of_its_tokens():
    fusion = GatedFusionConfig().build({"a": 2, "b": 2}, 2).eval()
    plain_tokens(fusion.tokens)
    assert torch.allclose(fusion(PAIR, PAIR_PRESENT), torch.tensor([[-1.0 + 5, 1.0 + 7], [1.0 - 1, -1.0 + 1]]), atol=1e-4)


def test_gates_multiply_each_token():
    fusion = GatedFusionConfig().build({"a": 2, "b": 2}, 2).eval()
    plain_tokens(fusion.tokens)
    with torch.no_grad():
        fusion.gate.bias.copy_(torch.tensor([-30.0, 30.0]))  # gates 0 and 2
    assert torch.allclose(fusion(PAIR, PAIR_PRESENT), torch.tensor([[10.0, 14.0], [-2.0, 2.0]]), atol=1e-4)


def test_concat_fusion_adds_the_mean_of_the_tokens():
    fusion = ConcatFusionConfig(hidden_dimension=3).build({"a": 2, "b": 2}, 2).eval()
    plain_tokens(fusion.tokens)
    with torch.no_grad():
        fusion.mix[2].weight.zero_()
        fusion.mix[2].bias.copy_(torch.tensor([10.0, 20.0]))
    assert torch.allclose(fusion(PAIR, PAIR_PRESENT), torch.tensor([[10 + 2.0, 20 + 4.0], [10.0, 20.0]]), atol=1e-4)
