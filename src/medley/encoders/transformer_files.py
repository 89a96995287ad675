"""Transformers folders: which small files travel as assets, how a model is built from them, weights only from safetensors."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from medley.schema import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Result = TypeVar("Result")

ASSET_SUFFIXES = (".json", ".txt", ".model")
MAX_ASSET_BYTES = 64 * 1024 * 1024


def read_assets(folder: str) -> dict[str, bytes]:
    """The configuration and tokenizer files of a local transformers folder; one that asks for its own code is refused."""
    root = Path(folder)
    if not (root / "config.json").is_file():
        raise InputError(f"folder '{folder}' has no config.json", "a local transformers folder (config.json, *.safetensors, …)", "correct the encoder's path")
    if "auto_map" in json.loads((root / "config.json").read_text()):
        raise InputError(f"'{folder}/config.json' has an 'auto_map' (code of its own)", "an architecture that transformers ships", "use another model")
    return {
        path.name: path.read_bytes()
        for path in sorted(root.iterdir())
        if path.suffix in ASSET_SUFFIXES and not path.name.endswith(".index.json") and path.stat().st_size <= MAX_ASSET_BYTES
    }


def with_folder(assets: Mapping[str, bytes], call: Callable[[str], Result]) -> Result:
    """`call(folder)` with the assets laid out in a temporary folder, as transformers wants them."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in assets.items():
            (Path(folder) / name).write_bytes(content)
        return call(folder)


def build_model(assets: Mapping[str, bytes], path: str, *, pretrained: bool) -> "PreTrainedModel":
    """The bare model in float32 and training mode: with the folder's safetensors weights, or only its shape for a checkpoint to fill."""
    import torch
    from transformers import AutoConfig, AutoModel

    if pretrained:
        options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
        model = AutoModel.from_pretrained(path, dtype=torch.float32, **options)
    else:
        config = with_folder(assets, lambda folder: AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
        model = AutoModel.from_config(config, dtype=torch.float32)
    if getattr(model, "pooler", None) is not None:
        # Encoders read the last hidden state: no gradient would reach the pooler, only weight decay.
        model.pooler.requires_grad_(False)
    return model.train()
