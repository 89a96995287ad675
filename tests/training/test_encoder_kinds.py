"""Encoders that tests elsewhere run alone, in a whole training on Ray: two workers, transformers models of three modalities, low-rank updates."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medley.config import override_run
from medley.training.run import fit
from tests.encoder_cases import save_bert, save_vit, save_wav2vec2
from tests.training.conftest import TinyRun


@pytest.mark.long
def test_models_of_three_modalities_train_together_in_three_ways(ray_session: None, tiny_run: TinyRun, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for name, save in {"bert": save_bert, "vit": save_vit}.items():
        save(tmp_path / name)
    save_wav2vec2(tmp_path / "wav2vec2", rate_hz=8000)
    encoders = {
        "text": {"kind": "transformer_text", "path": str(tmp_path / "bert"), "train": "lora", "lora": {"rank": 2}, "learning_rate": 0.01},
        "image": {"kind": "transformer_image", "path": str(tmp_path / "vit"), "train": "top_layers", "top_layers": 1, "activation_checkpointing": True},
        "audio": {"kind": "transformer_audio", "path": str(tmp_path / "wav2vec2"), "clip_seconds": 0.5, "output_norm": "layer"},
    }
    losses = {}
    for stage in (2, 3):
        run = override_run(tiny_run(f"kinds-{stage}", epochs=1, engine={"zero_stage": stage}), {"model.encoders": encoders})
        fit(run)
        folder = Path(run.run_uri)
        losses[stage] = json.loads((folder / "history.json").read_text())[0]["loss"]
        weights = load_file(folder / "weights.safetensors")
        updates = [value for name, value in weights.items() if name.startswith("encoders.text.") and ".lora_B." in name]
        assert updates
        assert all(value.any() for value in updates)
    assert losses[2] == pytest.approx(losses[3], rel=1e-3)
