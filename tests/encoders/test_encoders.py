"""The contract of encoders over every member of the union, and what each of them promises beside it."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from medley.data.reused_memory import ReusedMemory
from medley.encoders import EncoderConfig, PreparesInto, PreparesMany, stack_inputs
from medley.encoders.features import FeaturesConfig
from medley.encoders.frozen import freeze
from medley.encoders.images import IMAGENET_MEAN, IMAGENET_STD, normalise, prepare_square
from medley.encoders.logmel_cnn import LogMelCnnConfig
from medley.encoders.resnet import ResNetConfig
from medley.encoders.subword import SubwordConfig
from medley.encoders.tags import TagsConfig
from medley.encoders.timm_image import TimmConfig
from medley.encoders.transformer_image import TransformerImageConfig
from medley.encoders.transformer_text import TransformerTextConfig
from medley.media import encode_flac, encode_jpeg
from medley.model import ModelConfig, build_model
from medley.schema import InputError

MEMBERS = get_args(get_args(EncoderConfig)[0])
TEXTS = ["a red bird", "a bird", "two red fish swim in the sea", "fish"]
TAGS = [["sea", "fish"], ["sea"], ["fish", "sea", "red"], ["red"]]
FEATURES = [[0.0, 10.0, 1.0], [2.0, 10.0, 4.0], [1.0, 10.0, 0.0], [5.0, 10.0, 2.0]]


def pictures(count: int, side: int) -> list[bytes]:
    """Noise as JPEGs."""
    generator = torch.Generator().manual_seed(0)
    return [encode_jpeg(torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8), 90) for _ in range(count)]


def tone(frequency_hz: float, num_samples: int = 4000, gain: float = 0.5) -> bytes:
    """A pure tone of 8 kHz as FLAC."""
    return encode_flac(gain * torch.sin(2 * torch.pi * frequency_hz * torch.arange(num_samples) / 8000), 8000)


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BERT of one layer and 16 dimensions with a word tokenizer, as a transformers folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for text in TEXTS for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    folder = str(tmp_path_factory.mktemp("bert"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 40}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A vision transformer of one layer and 16 dimensions over four patches, as a transformers folder."""
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=16)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}))
    return str(folder)


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of timm's smallest EfficientNet, classifier and batch statistics included."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", pretrained=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    path = str(tmp_path_factory.mktemp("timm") / "test_efficientnet.safetensors")
    save_file(network.state_dict(), path)
    return path


CASES: dict[type, Callable[[Any], tuple[Any, list[Any]]]] = {
    SubwordConfig: lambda folder: (SubwordConfig(vocabulary_size=40, dimension=8), TEXTS),
    TransformerTextConfig: lambda folder: (TransformerTextConfig(path=folder("text_folder")), TEXTS),
    ResNetConfig: lambda folder: (ResNetConfig(side_pixels=32, width=8), pictures(4, 32)),
    TransformerImageConfig: lambda folder: (TransformerImageConfig(path=folder("image_folder")), pictures(4, 32)),
    TimmConfig: lambda folder: (TimmConfig(architecture="test_efficientnet", weights=folder("timm_file"), side_pixels=32), pictures(4, 32)),
    LogMelCnnConfig: lambda folder: (
        LogMelCnnConfig(sample_rate_hz=8000, clip_seconds=0.5, num_mel_bins=16, width=8),
        [tone(440), tone(880), tone(1000, 1000), tone(300, 6000)],
    ),
    TagsConfig: lambda folder: (TagsConfig(column="tags", dimension=8, min_items=1), TAGS),
    FeaturesConfig: lambda folder: (FeaturesConfig(column="vector"), FEATURES),
}
"""A tiny configuration and four values of each member; a member without a case fails below."""


class Case:
    """One member's configuration, values, assets and module in evaluation mode."""

    def __init__(self, config: Any, values: list[Any]):
        self.config, self.values = config, values
        self.assets = config.learn(values)
        torch.manual_seed(1)
        self.encoder = config.build(self.assets, pretrained=True).eval()

    def inputs(self, *places: int) -> dict[str, Tensor]:
        return stack_inputs([self.encoder.prepare(self.values[place]) for place in places or range(len(self.values))])


@pytest.fixture(scope="module", params=MEMBERS, ids=lambda member: member.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    assert request.param in CASES, f"add a case for {request.param.__name__} to CASES"
    return Case(*CASES[request.param](request.getfixturevalue))


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_kinds_are_unique():
    kinds = [member.model_fields["kind"].default for member in MEMBERS]
    assert len(set(kinds)) == len(kinds)


def test_prepare_is_deterministic_and_stays_so_in_threads(case: Case):
    alone = [case.encoder.prepare(value) for value in case.values]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(case.encoder.prepare, case.values * 50))
    assert all(equal(prepared, alone[number % len(alone)]) for number, prepared in enumerate(together))


def test_many_items_are_prepared_as_one_by_one(case: Case):
    alone = [case.encoder.prepare(value) for value in case.values]
    if isinstance(case.encoder, PreparesMany):
        many = case.encoder.prepare_many(case.values)
        assert all(equal(*pair) for pair in zip(many, alone, strict=True))
    if isinstance(case.encoder, PreparesInto):
        out = {name: ReusedMemory(row).rows(len(alone)) for name, row in case.encoder.dummy().items()}
        case.encoder.prepare_into([memoryview(value) for value in case.values], out)
        stacked = stack_inputs(alone)
        assert all(torch.equal(out[name], stacked[name]) and out[name].stride() == stacked[name].stride() for name in stacked)


def test_vectors_have_the_stated_width_and_are_finite(case: Case):
    vectors = case.encoder(case.inputs())
    assert vectors.shape == (4, case.encoder.output_dimension)
    assert vectors.dtype == torch.float32
    assert torch.isfinite(vectors).all()


def test_different_items_have_different_vectors(case: Case):
    vectors = case.encoder(case.inputs())
    assert torch.cdist(vectors, vectors)[~torch.eye(4, dtype=torch.bool)].min() > 1e-4


def test_a_dummy_stacks_with_prepared_items_and_gives_a_finite_vector(case: Case):
    dummy = case.encoder.dummy()
    assert {name: tensor.dtype for name, tensor in dummy.items()} == {name: tensor.dtype for name, tensor in case.encoder.prepare(case.values[0]).items()}
    assert torch.isfinite(case.encoder(stack_inputs([dummy]))).all()
    mixed = case.encoder(stack_inputs([dummy, *(case.encoder.prepare(value) for value in case.values)]))
    assert torch.isfinite(mixed).all()
    assert torch.allclose(mixed[1:], case.encoder(case.inputs()), atol=1e-5)


def test_a_rows_vector_does_not_depend_on_the_other_rows(case: Case):
    together = case.encoder(case.inputs())
    for place in range(4):
        assert torch.allclose(case.encoder(case.inputs(place))[0], together[place], atol=1e-5)
    assert torch.allclose(case.encoder(case.inputs(3, 1)), together[[3, 1]], atol=1e-5)


def test_a_rows_vector_does_not_depend_on_the_other_rows_in_training_mode(case: Case):
    case.encoder.train()
    # Dropout draws one number per position of the batch: without it, what is left to differ is statistics over the batch.
    dropouts = {module: module.p for module in case.encoder.modules() if isinstance(module, torch.nn.Dropout)}
    for module in dropouts:
        module.p = 0.0
    together = case.encoder(case.inputs())
    alone = torch.cat([case.encoder(case.inputs(place)) for place in range(4)])
    case.encoder.eval()
    for module, rate in dropouts.items():
        module.p = rate
    assert torch.allclose(alone, together, atol=1e-5)


def test_gradient_reaches_every_trainable_parameter(case: Case):
    torch.manual_seed(2)
    vectors = case.encoder(case.inputs())
    trainable = {name: parameter for name, parameter in case.encoder.named_parameters() if parameter.requires_grad}
    if not trainable:
        assert case.config.kind == "features"
        return
    gradients = torch.autograd.grad((vectors * torch.randn_like(vectors)).sum(), list(trainable.values()), allow_unused=True)
    without = [name for name, gradient in zip(trainable, gradients, strict=True) if gradient is None]
    assert without == []
    # Attention is blind to a constant added to every key, so the gradient of a key's bias is zero by mathematics.
    zero = [name for name, gradient in zip(trainable, gradients, strict=True) if not gradient.any() and not name.endswith("key.bias")]
    assert zero == []


def test_learning_and_building_twice_gives_the_same_assets_and_shapes(case: Case):
    assert case.config.learn(case.values) == case.assets
    shapes = {name: tensor.shape for name, tensor in case.encoder.state_dict().items()}
    for pretrained in (True, False):
        built = case.config.build(case.assets, pretrained=pretrained)
        assert {name: tensor.shape for name, tensor in built.state_dict().items()} == shapes
        assert equal(built.prepare(case.values[0]), case.encoder.prepare(case.values[0]))


def test_weights_of_one_build_work_in_another(case: Case):
    built = case.config.build(case.assets, pretrained=False).eval()
    built.load_state_dict(case.encoder.state_dict())
    assert torch.allclose(built(case.inputs()), case.encoder(case.inputs()), atol=1e-6)


def test_a_frozen_encoder_has_no_trainable_weight_in_the_model(case: Case):
    config = ModelConfig(dimension=4, encoders={"m": case.config.model_copy(update={"train": "frozen"})})
    model = build_model(
        config,
        {"m": case.assets},
        train_count_N=torch.tensor([1, 1]),
        user_train_count_V=torch.tensor([1]),
        num_categories={},
        mean_value=0.0,
        pretrained=True,
    )
    assert not any(parameter.requires_grad for parameter in model.encoders.parameters())
    assert any(parameter.requires_grad for parameter in model.fusion.parameters())


def test_a_frozen_encoders_row_has_the_same_bits_alone_and_in_any_company(case: Case):
    frozen = freeze(case.config.build(case.assets, pretrained=True))
    frozen.load_state_dict(case.encoder.state_dict())
    together = frozen(case.inputs())
    assert torch.allclose(together, case.encoder(case.inputs()), atol=1e-5)
    assert not together.requires_grad
    many = list(range(4)) * 11
    generator = torch.Generator().manual_seed(0)
    for places in ([0], [3, 1], [2] * 5, many, [many[place] for place in torch.randperm(44, generator=generator).tolist()]):
        assert torch.equal(frozen(case.inputs(*places)), together[places])
    with_dummies = frozen(stack_inputs([frozen.dummy(), *(frozen.prepare(value) for value in case.values), frozen.dummy()]))
    assert torch.equal(with_dummies[1:5], together)


def test_a_frozen_encoder_stays_in_evaluation_mode_and_keeps_the_names_of_its_weights(case: Case):
    frozen = nn.ModuleDict({"m": freeze(case.config.build(case.assets, pretrained=True))})
    frozen.train()
    assert not any(module.training for module in frozen["m"].modules())
    assert [name.removeprefix("m.") for name in frozen.state_dict()] == list(case.encoder.state_dict())


def test_only_a_frozen_encoder_may_be_cached(case: Case):
    values = case.config.model_dump()
    assert type(case.config)(**{**values, "train": "frozen", "cache": True}).cache
    with pytest.raises(ValidationError, match=r"train: frozen where cache is true \(with train: full"):
        type(case.config)(**{**values, "train": "full", "cache": True})


def test_shorter_inputs_are_padded_with_zeros_at_the_end():
    stacked = stack_inputs([{"x": torch.tensor([1, 2])}, {"x": torch.tensor([3])}])
    assert stacked["x"].tolist() == [[1, 2], [3, 0]]


def test_the_vector_of_a_text_is_the_normalised_mean_of_its_subwords():
    case = Case(SubwordConfig(vocabulary_size=40, dimension=8), TEXTS)
    ids = case.encoder.prepare("a red bird")["token_ids"]
    mean = case.encoder.embedding.weight[ids].mean(dim=0)
    expected = (mean - mean.mean()) / (mean.var(correction=0) + 1e-5).sqrt()
    assert torch.allclose(case.encoder(stack_inputs([{"token_ids": ids}]))[0], expected, atol=1e-5)


def test_a_text_is_cut_lowercased_and_never_empty():
    case = Case(SubwordConfig(vocabulary_size=40, dimension=8, max_tokens=3), TEXTS)
    assert case.encoder.prepare("A RED BIRD")["token_ids"].tolist() == case.encoder.prepare("a red bird")["token_ids"].tolist()
    assert len(case.encoder.prepare("a red bird " * 20)["token_ids"]) == 3
    assert case.encoder.prepare(" ")["token_ids"].tolist() == [1]
    assert case.encoder.prepare("漢字")["token_ids"].tolist()[0] == 1


def test_more_padding_does_not_change_a_transformers_text_vector(text_folder: str):
    case = Case(*CASES[TransformerTextConfig](lambda name: text_folder))
    inputs = case.inputs(0)
    padded = {name: nn.functional.pad(tensor, (0, 9)) for name, tensor in inputs.items()}
    assert torch.allclose(case.encoder(padded), case.encoder(inputs), atol=1e-5)


def test_a_transformers_text_vector_is_the_mean_of_the_models_own_hidden_states(text_folder: str):
    from transformers import AutoModel, AutoTokenizer

    case = Case(*CASES[TransformerTextConfig](lambda name: text_folder))
    tokens = AutoTokenizer.from_pretrained(text_folder)(TEXTS[0], return_tensors="pt")
    expected = AutoModel.from_pretrained(text_folder).eval()(**tokens).last_hidden_state.mean(dim=1)
    assert torch.allclose(case.encoder(case.inputs(0)), expected, atol=1e-6)


def test_a_long_text_is_cut_to_max_tokens(text_folder: str):
    case = Case(TransformerTextConfig(path=text_folder, max_tokens=5), TEXTS)
    ids = case.encoder.prepare("bird " * 50)["token_ids"].tolist()
    assert (len(ids), ids[0], ids[-1]) == (5, 2, 3)


def test_pictures_are_normalised_as_the_transformers_folder_says(image_folder: str):
    encoder = Case(*CASES[TransformerImageConfig](lambda name: image_folder)).encoder
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
    case = Case(ResNetConfig(side_pixels=64, weights=path), values)
    case.encoder.train()  # its frozen statistics must not move, nor use the batch's
    features: list[Tensor] = []
    hook = torchvision_resnet.avgpool.register_forward_hook(lambda module, inputs, output: features.append(output.flatten(start_dim=1)))
    with torch.no_grad():
        torchvision_resnet(normalise(case.inputs()["pixels"], IMAGENET_MEAN, IMAGENET_STD))
        vectors = case.encoder(case.inputs())
    hook.remove()
    assert torch.allclose(vectors, features[0], atol=1e-4)


def test_resnet_weights_of_another_network_are_refused(tmp_path: Path):
    from torchvision.models import resnet50

    path = str(tmp_path / "other.pth")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(InputError, match=r"lack \['bn1"):
        ResNetConfig(weights=path).build({}, pretrained=True)
    torch.save(resnet50(weights=None).state_dict(), path)
    with pytest.raises(InputError, match=r"other\.pth.*torchvision"):
        ResNetConfig(weights=path).build({}, pretrained=True)
    with pytest.raises(InputError, match="do not exist"):
        ResNetConfig(weights=str(tmp_path / "absent.pth")).build({}, pretrained=True)


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_resnet_weights_that_are_no_weights_are_refused(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(InputError, match=name):
        ResNetConfig(weights=str(tmp_path / name)).build({}, pretrained=True)


def test_a_resnet_of_any_shape_gives_eight_times_its_width():
    encoder = ResNetConfig(side_pixels=16, width=16, small_stem=True).build({}, pretrained=True)
    assert encoder(stack_inputs([encoder.dummy()])).shape == (1, 128)


def test_tones_an_octave_apart_have_different_vectors_and_loudness_does_not_count():
    case = Case(LogMelCnnConfig(sample_rate_hz=8000, clip_seconds=0.5, num_mel_bins=32, width=8), [tone(440), tone(880), tone(440, gain=0.25)])
    low, high, quiet = case.encoder(case.inputs())
    assert (low - high).norm() > 5 * (low - quiet).norm()


def test_a_clip_is_cut_or_padded_with_silence():
    encoder = LogMelCnnConfig(sample_rate_hz=8000, clip_seconds=0.25, num_mel_bins=16, width=8).build({}, pretrained=True)
    silence, short, exact, long = (encoder.prepare(clip)["log_mel"] for clip in (tone(440, 500, gain=0), tone(440, 500), tone(440, 2000), tone(440, 4000)))
    assert short.shape == exact.shape == (16, 1 + 2000 // 128)
    assert torch.equal(exact, long)
    assert silence.abs().max() == 0
    assert torch.allclose(short[:, -1], short[0, -1].expand(16))  # the padded end is silent in every band
    assert short[:, 1].std() > 0.1


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
