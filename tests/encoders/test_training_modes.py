"""What part of a deep encoder is trained, and how: the last blocks, low-rank updates, activation checkpointing."""

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from medley.encoders.frozen import build_frozen
from medley.encoders.lora import base_names, merge_lora
from medley.encoders.resnet import ResNetConfig
from medley.encoders.subword import SubwordConfig
from medley.encoders.timm_image import TimmConfig
from medley.schema import InputError
from medley.training.memory_pass import LiveTensors
from tests.encoder_cases import CASES, DEEP, Case, Folders

ATTENTION = [name for name in DEEP if name not in ("resnet", "torchvision", "timm")]


@pytest.fixture(scope="module")
def deep(model_folder: Folders) -> Callable[[str], Case]:
    """Name of a case → the case, built once."""
    found: dict[str, Case] = {}

    def case(name: str) -> Case:
        if name not in found:
            found[name] = Case(*CASES[name](model_folder))
        return found[name]

    return case


def trained(encoder: nn.Module) -> list[str]:
    """Names of the weights that are trained."""
    return [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("name", DEEP)
def test_the_last_blocks_and_what_follows_them_are_trained(deep: Callable[[str], Case], name: str):
    whole = deep(name)
    last = whole.changed(train="top_layers", top_layers=1).encoder
    first_of_block = next(own for own, parameter in last.named_parameters() if parameter is next(last.blocks()[-1].parameters()))
    all_names = trained(whole.encoder)
    assert trained(last) == all_names[all_names.index(first_of_block) :]
    assert len(trained(last)) < len(all_names)
    earlier = {parameter for block in last.blocks()[:-1] for parameter in block.parameters()}
    assert not any(parameter.requires_grad for parameter in earlier)


def test_of_a_bert_the_second_block_alone_and_of_a_vit_also_the_final_norm(deep: Callable[[str], Case]):
    bert, vit = (deep(name).changed(train="top_layers", top_layers=1).encoder for name in ("bert", "vit"))
    assert all(name.startswith("model.encoder.layer.1.") for name in trained(bert))
    assert {name.rsplit(".", 1)[0] for name in trained(vit) if not name.startswith("model.layers.1.")} == {"model.layernorm"}


def test_more_blocks_than_there_are_are_refused(deep: Callable[[str], Case]):
    with pytest.raises(InputError, match="top_layers 3 of a network with 2 blocks; expected at most 2"):
        deep("bert").changed(train="top_layers", top_layers=3)


@pytest.mark.parametrize("name", ATTENTION)
def test_low_rank_updates_begin_at_zero_and_alone_are_trained(deep: Callable[[str], Case], name: str):
    plain = deep(name)
    case = plain.changed(train="lora", lora={"rank": 2, "alpha": 4})
    assert torch.allclose(case.encoder(plain.inputs()), plain.encoder(plain.inputs()), atol=1e-6)
    names = trained(case.encoder)
    assert names
    assert all(".lora_A.default." in own or ".lora_B.default." in own for own in names)
    case.encoder(plain.inputs()).square().sum().backward()
    gradients = {own: parameter.grad for own, parameter in case.encoder.named_parameters() if ".lora_B." in own}
    # A key's update adds a part that depends on the token, so unlike its bias it counts.
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())
    assert all(parameter.grad is None for parameter in case.encoder.parameters() if not parameter.requires_grad)


def test_only_the_named_layers_have_updates(deep: Callable[[str], Case]):
    case = deep("bert").changed(train="lora", lora={"targets": ["query", "attention.output.dense"]})
    layers = {name.partition(".lora_")[0].removeprefix("model.encoder.layer.") for name in trained(case.encoder)}
    assert layers == {f"{block}.attention.{part}" for block in (0, 1) for part in ("self.query", "output.dense")}


def test_a_target_that_does_not_exist_is_refused_with_those_that_do(deep: Callable[[str], Case]):
    with pytest.raises(InputError, match=r"'q_proj', no linear layer of this encoder; expected some of dense, key, query, value"):
        deep("bert").changed(train="lora", lora={"targets": ["query", "q_proj"]})
    with pytest.raises(InputError, match=r"whose blocks have no linear layers; expected a transformer; set train: top_layers or full"):
        ResNetConfig(side_pixels=32, width=8, train="lora").build({}, pretrained=True)


def test_an_encoder_without_layers_is_trained_whole_or_not_at_all():
    with pytest.raises(ValidationError, match="'full' or 'frozen'"):
        SubwordConfig(train="lora")


def with_updates(case: Case) -> dict[str, Tensor]:
    """The weights of an encoder whose updates have learned something."""
    generator = torch.Generator().manual_seed(5)
    weights = case.encoder.state_dict()
    return {name: torch.randn(value.shape, generator=generator) / 4 if ".lora_B." in name else value for name, value in weights.items()}


@pytest.mark.parametrize("name", ["bert", "siglip", "wav2vec2"])
def test_merged_updates_give_a_plain_encoder_the_same_vectors(deep: Callable[[str], Case], name: str):
    plain = deep(name)
    case = plain.changed(train="lora", lora={"rank": 2, "alpha": 6})
    weights = with_updates(case)
    case.encoder.load_state_dict(weights)
    merged = merge_lora({f"encoders.m.{key}": value for key, value in weights.items()}, "encoders.m.", 6 / 2)
    frozen = build_frozen(case.config, case.assets, pretrained=False)
    frozen.load_state_dict({key.removeprefix("encoders.m."): value for key, value in merged.items()})
    expected = case.encoder(plain.inputs())
    assert torch.allclose(frozen(plain.inputs()), expected, atol=1e-5)
    assert not torch.allclose(plain.encoder(plain.inputs()), expected, atol=1e-3)
    # And on, into another encoder with updates, which begins there.
    other = plain.changed(train="lora", lora={"rank": 4})
    own = other.encoder.state_dict()
    named = base_names({key.removeprefix("encoders.m."): value for key, value in merged.items()}, own.keys())
    assert named.keys() == {key for key in own if ".lora_" not in key}
    other.encoder.load_state_dict(own | named)
    assert torch.allclose(other.encoder(plain.inputs()), expected, atol=1e-5)


def test_merging_adds_alpha_over_rank_times_the_product():
    weights = {"e.x.base_layer.weight": torch.eye(2), "e.x.base_layer.bias": torch.ones(2), "f.x.base_layer.weight": torch.zeros(1), "e.y": torch.zeros(1)}
    weights |= {"e.x.lora_A.default.weight": torch.tensor([[1.0, 2.0]]), "e.x.lora_B.default.weight": torch.tensor([[3.0], [4.0]])}
    merged = merge_lora(weights, "e.", 0.5)
    assert merged.keys() == {"e.x.weight", "e.x.bias", "e.y", "f.x.base_layer.weight"}
    assert merged["e.x.weight"].tolist() == [[2.5, 3.0], [2.0, 5.0]]


@pytest.mark.parametrize("name", DEEP)
def test_activation_checkpointing_changes_no_gradient_and_no_name(deep: Callable[[str], Case], name: str):
    plain = deep(name)
    case = plain.changed(activation_checkpointing=True)
    assert case.encoder.state_dict().keys() == plain.encoder.state_dict().keys()
    case.encoder.load_state_dict(plain.encoder.state_dict())

    def gradients(encoder: nn.Module) -> list[Tensor]:
        encoder.train()
        torch.manual_seed(3)  # dropout draws the same numbers
        loss = encoder(plain.inputs()).square().sum()
        found = torch.autograd.grad(loss, [parameter for parameter in encoder.parameters() if parameter.requires_grad])
        encoder.eval()
        return list(found)

    assert all(torch.equal(left, right) for left, right in zip(gradients(case.encoder), gradients(plain.encoder), strict=True))


def test_activation_checkpointing_keeps_less():
    peaks = []
    for checkpointing in (False, True):
        config = ResNetConfig(side_pixels=64, width=8, small_stem=True, activation_checkpointing=checkpointing)
        encoder = config.build({}, pretrained=True)
        pixels = torch.zeros(8, 3, 64, 64, dtype=torch.uint8)
        with LiveTensors() as live:
            kept = encoder({"pixels": pixels}).sum()
            peaks.append(live.num_bytes)
            del kept
    assert peaks[1] < 0.6 * peaks[0]


def test_a_network_whose_layers_are_in_no_known_order_can_only_be_trained_whole():
    def build(**settings: str) -> nn.Module:
        with torch.device("meta"):
            return TimmConfig(architecture="densenet121", weights="absent.safetensors", **settings).build({}, pretrained=False)

    assert trained(build())
    with pytest.raises(InputError, match="whose layers are in no order known here; expected train: full or frozen"):
        build(train="top_layers")


def test_a_wrong_kind_of_training_is_refused_before_a_model_is_built():
    with pytest.raises(ValidationError, match=r"train: frozen where cache is true \(with train: lora"):
        ResNetConfig(train="lora", cache=True)
