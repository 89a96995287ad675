"""The contract of fusions over every member of the union, and their formulas by hand."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from medley.fusion import FusionConfig
from medley.fusion.attention import AttentionFusionConfig
from medley.fusion.bilinear import BilinearFusionConfig
from medley.fusion.concat import ConcatFusionConfig
from medley.fusion.gated import GatedFusionConfig
from medley.fusion.late import LateFusionConfig
from medley.fusion.mean import MeanFusionConfig
from medley.fusion.tokens import ModalityTokens, drop_modalities
from medley.fusion.weights import modality_weights
from medley.schema import InputError

MEMBERS = get_args(get_args(FusionConfig)[0])
WIDTHS = {"text": 3, "image": 5, "audio": 4}
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


def fused(fusion: nn.Module, vectors: dict[str, Tensor], present: dict[str, Tensor]) -> Tensor:
    """The item vectors alone."""
    return fusion(vectors, present)[0]


def test_every_item_gets_a_finite_vector_of_the_asked_width_and_its_tokens_in_the_order_of_the_names(fusion: nn.Module):
    fused_UD, tokens_UMD, present_UM = fusion(vectors(), present())
    assert fused_UD.shape == (NUM_ITEMS, DIMENSION)
    assert torch.isfinite(fused_UD).all()
    assert tokens_UMD.shape[:2] == present_UM.shape == (NUM_ITEMS, len(WIDTHS))
    assert torch.equal(present_UM, torch.stack([present()[name] for name in sorted(WIDTHS)], dim=1))


def test_the_vector_of_a_missing_modality_does_not_matter(fusion: nn.Module):
    masks, given = present(), vectors()
    changed = {name: torch.where(masks[name].unsqueeze(1), given[name], vectors(seed=2)[name]) for name in WIDTHS}
    assert torch.equal(fused(fusion, changed, masks), fused(fusion, given, masks))


def test_every_present_modality_matters(fusion: nn.Module):
    before = fused(fusion, vectors(), present())
    for name in WIDTHS:
        after = fused(fusion, {**vectors(), name: vectors(seed=2)[name]}, present())
        assert ((after - before).abs().amax(dim=1) > 1e-6).tolist() == present()[name].tolist()


def test_an_items_vector_does_not_depend_on_the_others(fusion: nn.Module):
    together = fused(fusion, vectors(), present())
    alone = fused(fusion, {name: rows[2:3] for name, rows in vectors().items()}, {name: mask[2:3] for name, mask in present().items()})
    assert torch.allclose(alone[0], together[2], atol=1e-6)


def test_the_order_in_which_modalities_are_named_does_not_matter(fusion: nn.Module):
    def turned(values: dict[str, Any]) -> dict[str, Any]:
        return dict(reversed(values.items()))

    assert torch.equal(fused(fusion, turned(vectors()), turned(present())), fused(fusion, vectors(), present()))


def test_evaluation_is_deterministic_and_training_drops_modalities(fusion: nn.Module):
    assert torch.equal(fused(fusion, vectors(), present()), fused(fusion, vectors(), present()))
    fusion.tokens.modality_dropout = 0.5
    assert torch.equal(fused(fusion, vectors(), present()), fused(fusion, vectors(), present()))
    fusion.train()
    draws = torch.stack([fused(fusion, vectors(), present()) for _ in range(20)])
    changes = (draws - draws[:1]).abs().amax(dim=(0, 2)) > 0
    assert changes.tolist() == [True, True, True, True, False, False]  # a last modality is never dropped, and nothing cannot be


def test_gradient_reaches_every_parameter(fusion: nn.Module):
    fused(fusion, vectors(), present()).square().sum().backward()
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
    assert torch.allclose(fused(fusion, PAIR, PAIR_PRESENT), torch.tensor([[-1.0 + 5, 1.0 + 7], [1.0 - 1, -1.0 + 1]]), atol=1e-4)


def test_gates_multiply_each_token():
    fusion = GatedFusionConfig().build({"a": 2, "b": 2}, 2).eval()
    plain_tokens(fusion.tokens)
    with torch.no_grad():
        fusion.gate.bias.copy_(torch.tensor([-30.0, 30.0]))  # gates 0 and 2
    assert torch.allclose(fused(fusion, PAIR, PAIR_PRESENT), torch.tensor([[10.0, 14.0], [-2.0, 2.0]]), atol=1e-4)


def test_concat_fusion_adds_the_mean_of_the_tokens():
    fusion = ConcatFusionConfig(hidden_dimension=3).build({"a": 2, "b": 2}, 2).eval()
    plain_tokens(fusion.tokens)
    with torch.no_grad():
        fusion.mix[2].weight.zero_()
        fusion.mix[2].bias.copy_(torch.tensor([10.0, 20.0]))
    assert torch.allclose(fused(fusion, PAIR, PAIR_PRESENT), torch.tensor([[10 + 2.0, 20 + 4.0], [10.0, 20.0]]), atol=1e-4)


def test_gates_start_where_they_are_told_to():
    fusion = GatedFusionConfig(initial_gate=0.5).build({"a": 2, "b": 2}, 2).eval()
    plain_tokens(fusion.tokens)
    assert torch.allclose(fused(fusion, PAIR, PAIR_PRESENT), torch.tensor([[2.0, 4.0], [0.0, 0.0]]), atol=1e-4)


def test_the_mean_is_over_the_modalities_that_are_there_or_over_the_missing_tokens():
    fusion = MeanFusionConfig().build({"a": 2, "b": 2}, 2).eval()
    plain_tokens(fusion.tokens)
    assert torch.allclose(fused(fusion, PAIR, PAIR_PRESENT), torch.tensor([[-1.0, 1.0], [0.0, 0.0]]), atol=1e-4)
    nothing = {"a": torch.tensor([False, True]), "b": torch.tensor([False, True])}
    assert torch.allclose(fused(fusion, PAIR, nothing)[0], torch.tensor([2.5, 3.5]), atol=1e-4)


def test_late_fusion_scores_are_the_weighted_sum_of_one_inner_product_per_modality():
    fusion = LateFusionConfig().build({"a": 2, "b": 2}, 5).eval()
    plain_tokens(fusion.tokens)
    with torch.no_grad():
        fusion.log_weights_M.copy_(torch.tensor([2.0, 3.0]).log())
    user_D = torch.tensor([1.0, 10.0, 100.0, 1000.0, 1e6])
    # Item 0: 2 (1, 10) · (-1, 1) + 3 (100, 1000) · (5, 7); item 1: 2 (1, 10) · (1, -1) + 3 (100, 1000) · (-1, 1); the fifth column is spare.
    assert torch.allclose(fused(fusion, PAIR, PAIR_PRESENT) @ user_D, torch.tensor([2 * 9.0 + 3 * 7500.0, -2 * 9.0 + 3 * 900.0]), rtol=1e-3)


def test_attention_fusion_is_the_mean_of_the_tokens_plus_what_they_look_at():
    fusion = AttentionFusionConfig().build({"a": 2, "b": 2}, 2).eval()
    plain_tokens(fusion.tokens)
    with torch.no_grad():
        fusion.attention.query.weight.zero_()  # every token looks at all of them alike
        fusion.attention.value.weight.copy_(10 * torch.eye(2))
        fusion.attention.value.bias.zero_()
        fusion.attention.output.weight.copy_(torch.eye(2))
        fusion.attention.output.bias.copy_(torch.tensor([0.0, 100.0]))
    assert torch.allclose(fused(fusion, PAIR, PAIR_PRESENT), torch.tensor([[2.0 + 20, 4.0 + 40 + 100], [0.0, 100.0]]), atol=1e-3)


def test_bilinear_fusion_adds_products_of_the_tokens():
    fusion = BilinearFusionConfig(rank=2).build({"a": 2, "b": 2}, 2).eval()
    plain_tokens(fusion.tokens)
    with torch.no_grad():
        for factor in fusion.factors:  # first product: the tokens themselves; second: the constants 2 and 3
            factor.weight.copy_(torch.cat([torch.eye(2), torch.zeros(2, 2)]))
            factor.bias.zero_()
        fusion.factors[0].bias[2:] = 2.0
        fusion.factors[1].bias[2:] = 3.0
    assert torch.allclose(fused(fusion, PAIR, PAIR_PRESENT), torch.tensor([[2.0 - 5 + 6, 4.0 + 7 + 6], [0.0 - 1 + 6, 0.0 - 1 + 6]]), atol=1e-3)


def test_a_fusion_of_no_modalities_is_refused():
    with pytest.raises(InputError, match=r"a fusion of no modalities; expected at least one encoder"):
        GatedFusionConfig().build({}, 4)


def test_weights_of_modalities_add_up_to_one_and_missing_ones_have_none(fusion: nn.Module):
    weights_UM = modality_weights(fusion, vectors(), present())
    present_UM = torch.stack([present()[name] for name in sorted(WIDTHS)], dim=1)
    assert torch.equal(weights_UM > 0, present_UM)
    assert torch.allclose(weights_UM.sum(dim=1), present_UM.any(dim=1).float())
    assert weights_UM[4].tolist() == [0.0, 0.0, 1.0]  # only text is there


def test_the_weight_of_a_modality_is_the_share_of_the_vector_that_goes_with_it():
    fusion = GatedFusionConfig().build({"a": 2, "b": 2}, 2).eval()
    plain_tokens(fusion.tokens)
    with torch.no_grad():
        fusion.tokens.missing.weight.zero_()
        fusion.gate.bias.copy_(torch.tensor([0.0, -1.0986123]))  # gates 1 and 1/2 on tokens of equal length
    assert torch.allclose(modality_weights(fusion, PAIR, PAIR_PRESENT), torch.tensor([[1.0, 0.0], [2 / 3, 1 / 3]]), atol=1e-4)


def planted_error(config: Any, target_of: Any, names: tuple[str, ...] = ("a", "b")) -> float:
    """Squared error, as a share of the variance, of the target's columns on items that training did not see."""
    generator = torch.Generator().manual_seed(0)
    first_UD, second_UD = torch.randn(2, 600, 4, generator=generator)
    flag_U1 = (torch.rand(600, 1, generator=generator) < 0.5).float()
    target_UD, content = target_of(first_UD, second_UD, flag_U1)
    content = {name: content[name] for name in names}
    torch.manual_seed(1)
    model = nn.ModuleDict({"fusion": config.build({name: rows.shape[1] for name, rows in content.items()}, 12), "out": nn.Linear(12, 4)})
    masks = {name: torch.ones(600, dtype=torch.bool) for name in content}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)

    def error(rows: slice) -> Tensor:
        found_UD = model["out"](model["fusion"]({name: part[rows] for name, part in content.items()}, {name: mask[rows] for name, mask in masks.items()})[0])
        return (found_UD - target_UD[rows]).square().mean() / target_UD.var()

    for _ in range(120):
        optimizer.zero_grad()
        error(slice(0, 400)).backward()
        optimizer.step()
    return error(slice(400, 600)).item()


def trusted_by_flag(first_UD: Tensor, second_UD: Tensor, flag_U1: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The target stands in modality a where the flag is 1 and in b where it is 0; the other one holds noise."""
    target_UD, noise_UD = first_UD, second_UD
    a = torch.cat([torch.where(flag_U1 == 1, target_UD, noise_UD), 3 * flag_U1], dim=1)
    b = torch.cat([torch.where(flag_U1 == 1, noise_UD, target_UD), 3 * flag_U1], dim=1)
    return target_UD, {"a": a, "b": b}


def test_gates_find_which_modality_an_item_can_be_trusted_in_and_no_single_modality_or_sum_does():
    gated = planted_error(GatedFusionConfig(modality_dropout=0.0), trusted_by_flag)
    mean = planted_error(MeanFusionConfig(modality_dropout=0.0), trusted_by_flag)
    late = planted_error(LateFusionConfig(modality_dropout=0.0), trusted_by_flag)
    alone = [planted_error(GatedFusionConfig(modality_dropout=0.0), trusted_by_flag, (name,)) for name in ("a", "b")]
    print(f"gated {gated:.3f}, mean {mean:.3f}, late {late:.3f}, alone {alone[0]:.3f} {alone[1]:.3f}")
    assert gated < 0.7 * min(mean, late, *alone)


def halves(first_UD: Tensor, second_UD: Tensor, flag_U1: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Two columns of the target stand in modality a and two in b, each beside noise that keeps their length."""
    return first_UD, {"a": torch.cat([first_UD[:, :2], second_UD[:, :2]], dim=1), "b": torch.cat([first_UD[:, 2:], second_UD[:, 2:]], dim=1)}


@pytest.mark.parametrize("config", [member(modality_dropout=0.0) for member in MEMBERS], ids=lambda config: config.kind)
def test_every_fusion_finds_more_in_two_modalities_than_in_one_where_each_holds_half(config: Any):
    both, alone = planted_error(config, halves), [planted_error(config, halves, (name,)) for name in ("a", "b")]
    print(f"{config.kind}: both {both:.3f}, alone {alone[0]:.3f} {alone[1]:.3f}")
    assert both < 0.7 * min(alone)  # the layer norm of so few columns loses their length, so nothing comes near 0


def product(first_UD: Tensor, second_UD: Tensor, flag_U1: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The target is the product of the modalities, column by column: neither alone says anything about it."""
    return first_UD * second_UD, {"a": first_UD, "b": second_UD}


def test_a_product_of_modalities_is_found_by_the_bilinear_fusion_and_not_by_a_sum():
    bilinear = planted_error(BilinearFusionConfig(modality_dropout=0.0), product)
    mean = planted_error(MeanFusionConfig(modality_dropout=0.0), product)
    print(f"bilinear {bilinear:.3f}, mean {mean:.3f}")
    assert bilinear < 0.65
    assert mean > 0.9
