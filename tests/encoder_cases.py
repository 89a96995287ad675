"""Tiny encoders with values to read: at least one case of every member of the union, and each family of pretrained models."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medley.encoders import stack_inputs
from medley.encoders.features import FeaturesConfig
from medley.encoders.logmel_cnn import LogMelCnnConfig
from medley.encoders.logmel_recurrent import LogMelRecurrentConfig
from medley.encoders.recurrent_text import RecurrentTextConfig
from medley.encoders.resnet import ResNetConfig
from medley.encoders.subword import SubwordConfig
from medley.encoders.tags import TagsConfig
from medley.encoders.timm_image import TimmConfig
from medley.encoders.torchvision_image import TorchvisionConfig
from medley.encoders.transformer_audio import TransformerAudioConfig
from medley.encoders.transformer_image import TransformerImageConfig
from medley.encoders.transformer_text import TransformerTextConfig
from medley.media import encode_flac, encode_jpeg

TEXTS = ["a red bird", "a bird", "two red fish swim in the sea", "fish"]
TAGS = [["sea", "fish"], ["sea"], ["fish", "sea", "red"], ["red"]]
FEATURES = [[0.0, 10.0, 1.0], [2.0, 10.0, 4.0], [1.0, 10.0, 0.0], [5.0, 10.0, 2.0]]
VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 20, "vocab_size": 9}


def pictures(count: int, side: int) -> list[bytes]:
    """Noise as JPEGs."""
    generator = torch.Generator().manual_seed(0)
    return [encode_jpeg(torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8), 90) for _ in range(count)]


def tone(frequency_hz: float, num_samples: int = 4000, gain: float = 0.5, rate_hz: int = 8000) -> bytes:
    """A pure tone as FLAC."""
    return encode_flac(gain * torch.sin(2 * torch.pi * frequency_hz * torch.arange(num_samples) / rate_hz), rate_hz)


def tones(rate_hz: int) -> list[bytes]:
    """Four tones of different pitch and length, the last longer than any clip of the cases."""
    return [tone(hertz, num_samples, rate_hz=rate_hz) for hertz, num_samples in ((440, rate_hz // 2), (880, rate_hz // 2), (1000, 1000), (300, rate_hz))]


def save_bert(folder: Path) -> None:
    """A BERT of two layers and 16 dimensions with a word tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for text in TEXTS for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    sizes = {**TEXT, "num_hidden_layers": 2, "max_position_embeddings": 40, "vocab_size": len(words)}
    BertModel(BertConfig(**sizes)).save_pretrained(folder)


def save_vit(folder: Path) -> None:
    """A ViT of two layers over four patches, with its own mean and deviation of pixels."""
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(**VISION, intermediate_size=32)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}))


def save_clip(folder: Path) -> None:
    """A whole CLIP, for pictures and text."""
    from transformers import CLIPConfig, CLIPModel

    names = {"bos_token_id": 1, "eos_token_id": 2}
    CLIPModel(CLIPConfig(vision_config={**VISION, "intermediate_size": 32}, text_config=TEXT | names)).save_pretrained(folder)


def save_siglip(folder: Path) -> None:
    """A whole SigLIP, for pictures and text."""
    from transformers import SiglipConfig, SiglipModel

    names = {"bos_token_id": 1, "eos_token_id": 2}
    SiglipModel(SiglipConfig(vision_config={**VISION, "intermediate_size": 32}, text_config=TEXT | names)).save_pretrained(folder)


def save_dinov2(folder: Path) -> None:
    """A DINOv2."""
    from transformers import Dinov2Config, Dinov2Model

    Dinov2Model(Dinov2Config(**VISION, mlp_ratio=2)).save_pretrained(folder)


def save_ast(folder: Path) -> None:
    """An Audio Spectrogram Transformer over 64 frames of 32 bins."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    sizes = {**VISION, "intermediate_size": 32, "max_length": 64, "num_mel_bins": 32}
    del sizes["image_size"]
    ASTModel(ASTConfig(**sizes)).save_pretrained(folder)
    ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(folder)


def save_whisper(folder: Path) -> None:
    """A Whisper over clips of one second."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32}
    more = {"decoder_ffn_dim": 32, "num_mel_bins": 16, "max_source_positions": 50, "max_target_positions": 9, "vocab_size": 9, "encoder_layerdrop": 0.5}
    names = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    WhisperForConditionalGeneration(WhisperConfig(**sizes, **more, **names)).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(folder)


def save_wav2vec2(folder: Path, norm: str = "layer", rate_hz: int = 16000) -> None:
    """A wav2vec 2.0; with norm: layer it reads a mask of the padding, with group, as the smallest published one, it does not."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": (8, 8), "conv_kernel": (10, 3)}
    more = {"conv_stride": (5, 4), "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": norm, "layerdrop": 0.5}
    dropouts = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0)
    Wav2Vec2Model(Wav2Vec2Config(**sizes, **more, **dropouts, do_stable_layer_norm=norm == "layer")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer", sampling_rate=rate_hz).save_pretrained(folder)


def save_timm(folder: Path) -> None:
    """Weights of timm's smallest EfficientNet, classifier and batch statistics included."""
    import timm
    from safetensors.torch import save_file

    network = timm.create_model("test_efficientnet", pretrained=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    save_file(network.state_dict(), folder / "test_efficientnet.safetensors")


SAVERS: dict[str, Callable[[Path], None]] = {
    "bert": save_bert, "vit": save_vit, "clip": save_clip, "siglip": save_siglip, "dinov2": save_dinov2, "ast": save_ast, "whisper": save_whisper,
    "wav2vec2": save_wav2vec2, "timm": save_timm,
}  # fmt: skip
"""Name of a model → what writes it, tiny and with random weights, into a folder."""

Folders = Callable[[str], str]
"""Name of a model → its folder."""


def _transformer_image(name: str, **settings: Any) -> Callable[[Folders], tuple[Any, list[Any]]]:
    return lambda folders: (TransformerImageConfig(path=folders(name), **settings), pictures(4, 32))


def _transformer_audio(name: str, **settings: Any) -> Callable[[Folders], tuple[Any, list[Any]]]:
    return lambda folders: (TransformerAudioConfig(path=folders(name), clip_seconds=0.6, **settings), tones(16000))


LOG_MEL = {"sample_rate_hz": 8000, "clip_seconds": 0.5, "num_mel_bins": 16, "width": 8}
WORDS = {"vocabulary_size": 40, "dimension": 8}
CASES: dict[str, Callable[[Folders], tuple[Any, list[Any]]]] = {
    "subword": lambda folders: (SubwordConfig(**WORDS), TEXTS),
    "gru_text": lambda folders: (RecurrentTextConfig(**WORDS, width=4), TEXTS),
    "lstm_text": lambda folders: (RecurrentTextConfig(**WORDS, width=4, cell="lstm", num_layers=2, pooling="last"), TEXTS),
    "bert": lambda folders: (TransformerTextConfig(path=folders("bert")), TEXTS),
    "bert_last": lambda folders: (TransformerTextConfig(path=folders("bert"), pooling="last", output_norm="unit"), TEXTS),
    "resnet": lambda folders: (ResNetConfig(side_pixels=32, width=8), pictures(4, 32)),
    "torchvision": lambda folders: (TorchvisionConfig(architecture="resnet18", side_pixels=32), pictures(4, 32)),
    "timm": lambda folders: (
        TimmConfig(architecture="test_efficientnet", weights=f"{folders('timm')}/test_efficientnet.safetensors", side_pixels=32),
        pictures(4, 32),
    ),
    "vit": _transformer_image("vit"),
    "vit_own": _transformer_image("vit", pooling="own"),
    "clip": _transformer_image("clip", output_norm="layer"),
    "clip_own": _transformer_image("clip", pooling="own", side_pixels=48),
    "siglip": _transformer_image("siglip"),
    "siglip_own": _transformer_image("siglip", pooling="own"),
    "dinov2": _transformer_image("dinov2", pooling="cls"),
    "logmel_cnn": lambda folders: (LogMelCnnConfig(**LOG_MEL), tones(8000)),
    "logmel_gru": lambda folders: (LogMelRecurrentConfig(**LOG_MEL, frames_per_step=3), tones(8000)),
    "logmel_lstm": lambda folders: (LogMelRecurrentConfig(**LOG_MEL, cell="lstm", pooling="last"), tones(8000)),
    "ast": _transformer_audio("ast"),
    "ast_own": _transformer_audio("ast", pooling="own"),
    "whisper": _transformer_audio("whisper"),
    "wav2vec2": _transformer_audio("wav2vec2"),
    "tags": lambda folders: (TagsConfig(column="tags", dimension=8, min_items=1), TAGS),
    "features": lambda folders: (FeaturesConfig(column="vector"), FEATURES),
}
"""A tiny configuration and four values."""

DEEP = ("bert", "resnet", "torchvision", "timm", "vit", "clip", "siglip", "dinov2", "ast", "whisper", "wav2vec2")
"""Cases whose encoders have blocks."""


@dataclass
class Case:
    """One configuration, its values, assets and module in evaluation mode."""

    config: Any
    values: list[Any]

    def __post_init__(self) -> None:
        self.assets = self.config.learn(self.values)
        torch.manual_seed(1)
        self.encoder = self.config.build(self.assets, pretrained=True).eval()

    def inputs(self, *places: int) -> dict[str, Tensor]:
        """Of these values, or all."""
        return stack_inputs([self.encoder.prepare(self.values[place]) for place in places or range(len(self.values))])

    def changed(self, **settings: Any) -> "Case":
        """The same with other settings, checked as a file's are."""
        return Case(type(self.config).model_validate(self.config.model_dump() | settings), self.values)
