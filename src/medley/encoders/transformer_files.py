"""Transformers folders: which small files travel as assets, how a model is built from them, weights only from safetensors."""

import json
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from medley.encoders.own_ranges import build_sharded
from medley.encoders.settings import LayeredSettings
from medley.schema import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Result = TypeVar("Result")

ASSET_SUFFIXES = (".json", ".txt", ".model")
MAX_ASSET_BYTES = 64 * 1024 * 1024
CODE_FILES = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
"""Files whose `auto_map` names code to be run."""
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
FEATURE_FILE = "preprocessor_config.json"
VISION_PART = "vision_config"
SIGNS = {
    "several modalities": (VISION_PART, "audio_config"),
    "image": ("image_size",),
    "audio": ("num_mel_bins", "conv_dim"),
    "text": ("vocab_size",),
}
"""What the configuration of a model of each modality has; in this order, since audio models may have a vocabulary too."""
IDLE_PARTS = frozenset({"mask_token", "masked_spec_embed"})
"""What models have for learning with masked inputs: no gradient would reach it, only weight decay."""
SKIPPED_LAYERS = ("layerdrop", "encoder_layerdrop")
"""Shares of layers that a model leaves out at random in training: with numbers that no seed of ours decides, and ZeRO-3 would wait for them forever."""


class TransformerSettings(LayeredSettings):
    """Base of the configurations of transformers models."""

    path: str
    """local transformers folder: config.json, *.safetensors, and the tokenizer's or feature extractor's files"""
    from_scratch: bool = False
    """True: the folder's weights are not read (it need not have any), training begins with random ones, at ZeRO-3 others than at 0 to 2; False: it
    begins with the folder's"""

    def read_assets(self, modality: Literal["text", "image", "audio"]) -> dict[str, bytes]:
        """The folder's small files; see `read_assets`."""
        return read_assets(self.path, modality, needs_weights=not self.from_scratch)

    def load(self, assets: Mapping[str, bytes], idle: Collection[str], *, pretrained: bool) -> "PreTrainedModel":
        """The model; see `build_model`."""
        return build_model(assets, self.path, idle, pretrained=pretrained and not self.from_scratch)


def read_assets(folder: str, modality: Literal["text", "image", "audio"], *, needs_weights: bool = True) -> dict[str, bytes]:
    """The configuration and tokenizer files of a local transformers folder.

    Refused are a folder that asks for its own code, one without safetensors weights, a model of another modality, a text model without tokenizer,
    a sound model without feature extractor. Of a model of pictures and text (CLIP, SigLIP) the pictures' part may be used.
    """
    root = Path(folder)
    if not (root / "config.json").is_file():
        raise InputError(f"folder '{folder}' has no config.json", "a local transformers folder (config.json, *.safetensors, …)", "correct the encoder's path")
    for name in CODE_FILES:
        if (root / name).is_file() and "auto_map" in read_settings(root / name):
            raise InputError(f"'{folder}/{name}' has an 'auto_map' (code of its own)", "an architecture that transformers ships", "use another model")
    if needs_weights and not any(root.glob("*.safetensors")):
        found = sorted(path.name for path in root.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack"))
        raise InputError(
            f"'{folder}' has {f'its weights in {found[0]}' if found else 'no weights'}",
            "*.safetensors (other formats can hold code)",
            "save the model once with save_pretrained, which writes safetensors",
        )
    _check_modality(folder, read_settings(root / "config.json"), modality)
    if modality == "text" and not any((root / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"'{folder}' has no tokenizer", f"one of {', '.join(TOKENIZER_FILES)}", "copy the model's tokenizer files beside its weights")
    if modality == "audio" and not (root / FEATURE_FILE).is_file():
        raise InputError(f"'{folder}' has no {FEATURE_FILE}", "the settings of the model's feature extractor", "copy that file beside the weights")
    return {
        path.name: path.read_bytes()
        for path in sorted(root.iterdir())
        if path.suffix in ASSET_SUFFIXES and not path.name.endswith(".index.json") and path.stat().st_size <= MAX_ASSET_BYTES
    }


def _check_modality(folder: str, settings: Mapping[str, Any], modality: str) -> None:
    is_for = next((name for name, signs in SIGNS.items() if any(sign in settings for sign in signs)), modality)
    if is_for == modality or (modality == "image" and VISION_PART in settings):
        return
    raise InputError(
        f"'{folder}' holds a model of type '{settings.get('model_type')}', for {is_for}",
        f"a model for {modality}",
        "use another folder, or the encoder kind for what it holds",
    )


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object out of a folder's file; anything else in it is an InputError."""
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no UTF-8
        raise InputError(f"'{path}' is not JSON ({error})", "a JSON object", "copy the model's folder again") from error
    if not isinstance(settings, dict):
        raise InputError(f"'{path}' holds {type(settings).__name__}", "a JSON object", "copy the model's folder again")
    return settings


def model_type(assets: Mapping[str, bytes]) -> str:
    """The type of the model that `build_model` makes, as transformers names it."""
    settings = json.loads(assets["config.json"])
    return str(settings.get(VISION_PART, settings).get("model_type"))


def with_folder(assets: Mapping[str, bytes], call: Callable[[str], Result]) -> Result:
    """`call(folder)` with the assets laid out in a temporary folder, as transformers wants them."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in assets.items():
            (Path(folder) / name).write_bytes(content)
        return call(folder)


def build_model(assets: Mapping[str, bytes], path: str, idle: Collection[str], *, pretrained: bool) -> "PreTrainedModel":
    """The bare model in float32 and training mode: with the folder's safetensors weights, or only its shape for a checkpoint to fill.

    idle: parts by name that its encoder never reads, beside IDLE_PARTS: they are not trained, and the folder need not have them.
    """
    import torch
    from transformers import AutoConfig, AutoModel
    from transformers.integrations import is_deepspeed_zero3_enabled

    config = with_folder(assets, lambda folder: AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
    config = getattr(config, VISION_PART, config)
    config.apply_spec_augment = False  # masks that NumPy's own generator draws
    for name in SKIPPED_LAYERS:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    missing: Collection[str] = ()
    seed = int(torch.randint(2**62, ()))
    # Sharded building draws other random numbers, and on rank 0 more of them: what is built after the model must not see that.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if pretrained:
            model, missing = build_sharded(config, path) if is_deepspeed_zero3_enabled() else _load(config, path)
        else:
            model = AutoModel.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if {*name.split(".")} & {*IDLE_PARTS, *idle}:
            parameter.requires_grad_(False)
        elif name in missing:
            raise InputError(
                f"the weights in '{path}' have no '{name}' of the shape that config.json asks for ({len(missing)} names missing)",
                f"the weights of this {type(model).__name__}",
                "save the whole model once with save_pretrained, or set from_scratch: true",
            )
    return model.train()


def _load(config: Any, path: str) -> "tuple[PreTrainedModel, set[str]]":
    """The model with the folder's weights, and the names of those that it lacks or has in another shape."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel

    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # both are judged by the caller
    try:
        model, report = AutoModel.from_pretrained(path, config=config, dtype=torch.float32, **options)
    except SafetensorError as error:
        raise InputError(f"the weights in '{path}' cannot be read ({error})", "whole *.safetensors files", "copy the model's folder again") from error
    return model, {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
