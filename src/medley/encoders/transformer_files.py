"""Transformers folders: which small files travel as assets, how a model is built from them, weights only from safetensors."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from medley.schema import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Result = TypeVar("Result")

ASSET_SUFFIXES = (".json", ".txt", ".model")
MAX_ASSET_BYTES = 64 * 1024 * 1024
CODE_FILES = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
"""Files whose `auto_map` names code to be run."""
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
SIGNS = {
    "several modalities": ("vision_config", "audio_config"),
    "image": ("image_size",),
    "audio": ("num_mel_bins", "conv_dim"),
    "text": ("vocab_size",),
}
"""What the configuration of a model of each modality has; in this order, since audio models may have a vocabulary too."""


def read_assets(folder: str, modality: Literal["text", "image"]) -> dict[str, bytes]:
    """The configuration and tokenizer files of a local transformers folder.

    Refused are a folder that asks for its own code, one without safetensors weights, a model of another modality, a text model without tokenizer.
    """
    root = Path(folder)
    if not (root / "config.json").is_file():
        raise InputError(f"folder '{folder}' has no config.json", "a local transformers folder (config.json, *.safetensors, …)", "correct the encoder's path")
    for name in CODE_FILES:
        if (root / name).is_file() and "auto_map" in _read_settings(root / name):
            raise InputError(f"'{folder}/{name}' has an 'auto_map' (code of its own)", "an architecture that transformers ships", "use another model")
    if not any(root.glob("*.safetensors")):
        found = sorted(path.name for path in root.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack"))
        raise InputError(
            f"'{folder}' has {f'its weights in {found[0]}' if found else 'no weights'}",
            "*.safetensors (other formats can hold code)",
            "save the model once with save_pretrained, which writes safetensors",
        )
    settings = _read_settings(root / "config.json")
    is_for = next((name for name, signs in SIGNS.items() if any(sign in settings for sign in signs)), modality)
    if is_for != modality:
        raise InputError(
            f"'{folder}' holds a model of type '{settings.get('model_type')}', for {is_for}",
            f"a model for {modality}",
            "use another folder, or the encoder kind for what it holds",
        )
    if modality == "text" and not any((root / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"'{folder}' has no tokenizer", f"one of {', '.join(TOKENIZER_FILES)}", "copy the model's tokenizer files beside its weights")
    return {
        path.name: path.read_bytes()
        for path in sorted(root.iterdir())
        if path.suffix in ASSET_SUFFIXES and not path.name.endswith(".index.json") and path.stat().st_size <= MAX_ASSET_BYTES
    }


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no UTF-8
        raise InputError(f"'{path}' is not JSON ({error})", "a JSON object", "copy the model's folder again") from error
    if not isinstance(settings, dict):
        raise InputError(f"'{path}' holds {type(settings).__name__}", "a JSON object", "copy the model's folder again")
    return settings


def with_folder(assets: Mapping[str, bytes], call: Callable[[str], Result]) -> Result:
    """`call(folder)` with the assets laid out in a temporary folder, as transformers wants them."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in assets.items():
            (Path(folder) / name).write_bytes(content)
        return call(folder)


def build_model(assets: Mapping[str, bytes], path: str, *, pretrained: bool) -> "PreTrainedModel":
    """The bare model in float32 and training mode: with the folder's safetensors weights, or only its shape for a checkpoint to fill."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel

    if pretrained:
        options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
        try:
            model = AutoModel.from_pretrained(path, dtype=torch.float32, **options)
        except SafetensorError as error:
            raise InputError(f"the weights in '{path}' cannot be read ({error})", "whole *.safetensors files", "copy the model's folder again") from error
    else:
        config = with_folder(assets, lambda folder: AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
        model = AutoModel.from_config(config, dtype=torch.float32)
    if getattr(model, "pooler", None) is not None:
        # Encoders read the last hidden state: no gradient would reach the pooler, only weight decay.
        model.pooler.requires_grad_(False)
    return model.train()
