"""What picture encoders promise beside the contract."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medley.encoders import stack_inputs
from medley.encoders.images import IMAGENET_MEAN, IMAGENET_STD, normalise, prepare_square
from medley.encoders.resnet import ResNetConfig
from medley.encoders.torchvision_image import TorchvisionConfig
from medley.media import encode_jpeg
from medley.schema import InputError
from tests.encoder_cases import CASES, Case, Folders, pictures


def test_pictures_are_normalised_as_the_transformers_folder_says(model_folder: Folders):
    encoder = Case(*CASES["vit"](model_folder)).encoder
    assert (encoder.mean, encoder.std, encoder.side_pixels) == ([0.5] * 3, [0.25] * 3, 32)


def test_a_picture_is_squared_and_keeps_its_pixels_where_it_fits():
    image = torch.arange(3 * 16 * 16).reshape(3, 16, 16).to(torch.uint8)
    same = prepare_square(encode_jpeg(image, 100), 16)
    assert same.shape == (3, 16, 16)
    assert prepare_square(encode_jpeg(torch.full((3, 10, 20), 77, dtype=torch.uint8), 100), 8).sub(77).abs().max() <= 2


def test_white_is_normalised_by_mean_and_deviation():
    white = normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), IMAGENET_MEAN, IMAGENET_STD)
    assert white.flatten().tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])


@pytest.fixture(scope="module")
def torchvision_resnet() -> nn.Module:
    """torchvision's resnet18 with random weights and batch statistics, without its classifier, in evaluation mode."""
    from torchvision.models import resnet18

    torch.manual_seed(3)
    network = resnet18(weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return network.eval()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_resnet_with_torchvisions_weights_gives_torchvisions_features(tmp_path: Path, torchvision_resnet: nn.Module, suffix: str):
    from safetensors.torch import save_file

    path = str(tmp_path / f"resnet18.{suffix}")
    state = torchvision_resnet.state_dict()
    torch.save(state, path) if suffix == "pth" else save_file(state, path)
    values = pictures(2, 64)
    case = Case(TorchvisionConfig(architecture="resnet18", side_pixels=64, weights=path), values)
    case.encoder.train()  # its frozen statistics must not move, nor use the batch's
    features: list[Tensor] = []
    hook = torchvision_resnet.avgpool.register_forward_hook(lambda module, inputs, output: features.append(output.flatten(start_dim=1)))
    with torch.no_grad():
        torchvision_resnet(normalise(case.inputs()["pixels"], IMAGENET_MEAN, IMAGENET_STD))
        vectors = case.encoder(case.inputs())
    hook.remove()
    assert torch.allclose(vectors, features[0], atol=1e-4)


@pytest.mark.parametrize("architecture", ["resnet50", "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny", "vit_b_32"])
def test_networks_of_every_family_have_torchvisions_names_and_a_classifiers_inputs(architecture: str):
    from torchvision import models

    with torch.device("meta"):
        encoder = TorchvisionConfig(architecture=architecture, weights="absent.pth").build({}, pretrained=False)
        published = models.get_model(architecture, weights=None)
        vectors = encoder({"pixels": torch.zeros(2, 3, 224, 224, dtype=torch.uint8)})
    expected = {name for name in published.state_dict() if not name.endswith("num_batches_tracked") and not name.startswith(encoder.family.classifier)}
    assert {name.removeprefix("network.") for name in encoder.state_dict()} == expected
    width = next(module.in_features for module in published.get_submodule(encoder.family.classifier).modules() if isinstance(module, nn.Linear))
    assert vectors.shape == (2, width)
    assert encoder.output_dimension == width
    assert len(encoder.blocks()) == {"efficientnet_b0": 7, "efficientnet_v2_s": 6, "vit_b_32": 12}.get(architecture, 4)


def test_weights_of_another_network_are_refused(tmp_path: Path):
    from torchvision.models import resnet50

    def build(name: str) -> nn.Module:
        return TorchvisionConfig(architecture="resnet18", weights=str(tmp_path / name)).build({}, pretrained=True)

    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "part.pth")
    with torch.device("meta"):
        state = resnet50(weights=None).state_dict()
    torch.save({name: torch.zeros(value.shape) for name, value in state.items()}, tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"not weights at all")
    (tmp_path / "broken.safetensors").write_bytes(b"not weights at all")
    for name, message in (
        ("part.pth", r"lack \['bn1"),
        ("other.pth", r"other\.pth.*torchvision's resnet18"),
        ("absent.pth", "do not exist"),
        ("broken.pth", r"broken\.pth' cannot be loaded"),
        ("broken.safetensors", r"broken\.safetensors' cannot be loaded"),
    ):
        with pytest.raises(InputError, match=message):
            build(name)


@pytest.mark.parametrize(("name", "pooled"), [("clip_own", "normed class token"), ("siglip_own", "attention"), ("dinov2", "class token")])
def test_a_pictures_vector_is_what_transformers_itself_computes(model_folder: Folders, name: str, pooled: str):
    from transformers import AutoModel

    case = Case(*CASES[name](model_folder))
    model = AutoModel.from_pretrained(case.config.path).eval()
    model = getattr(model, "vision_model", model)
    options = {"interpolate_pos_encoding": True} if case.encoder.side_pixels != 32 else {}
    with torch.no_grad():
        output = model(normalise(case.inputs()["pixels"], case.encoder.mean, case.encoder.std), **options)
        assert torch.allclose(case.encoder(case.inputs()), output.pooler_output, atol=1e-5), pooled


def test_the_mean_of_a_picture_is_over_its_patches_alone(model_folder: Folders):
    case = Case(*CASES["vit"](model_folder))
    with torch.no_grad():
        hidden = case.encoder.model(normalise(case.inputs()["pixels"], case.encoder.mean, case.encoder.std)).last_hidden_state
        assert hidden.shape[1] == 1 + 4
        assert torch.allclose(case.encoder(case.inputs()), hidden[:, 1:].mean(dim=1), atol=1e-6)


def test_a_resnet_of_any_shape_gives_eight_times_its_width():
    encoder = ResNetConfig(side_pixels=16, width=16, small_stem=True).build({}, pretrained=True)
    assert encoder(stack_inputs([encoder.dummy()])).shape == (1, 128)
