"""Low-rank updates from training to checkpoint, and from a finished run into runs that train otherwise."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from medley.data.base import PREPARED_KIND
from medley.data.prepared import PreparedData
from medley.encoders import stack_inputs
from medley.manifest import staged_folder, write_bytes, write_json, write_manifest, write_parquet
from medley.model import ModelConfig, RecommenderModel
from medley.schema import PREPARED_INTERACTIONS_SCHEMA
from medley.training.assemble import assemble_model
from medley.training.checkpoint_parts import StoredState
from medley.training.config import GradientTrainConfig
from medley.training.engine import TorchEngine
from medley.training.features import FeatureCache
from medley.training.start import Start, read_weights_of
from tests.encoder_cases import TEXTS, save_bert
from tests.training.lora_ranks import NUM_STEPS, OPTIMIZER, Scored, train, train_and_write
from tests.training.two_ranks import TwoRanks


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    save_bert(path)
    return str(path)


def test_a_checkpoint_of_two_ranks_at_stage_3_holds_the_updates_whole(ranks: TwoRanks, bert: str, tmp_path: Path) -> None:
    ranks(train_and_write, bert, str(tmp_path))
    state = StoredState(str(tmp_path), [json.loads((tmp_path / f"part-0000{rank}.json").read_text()) for rank in range(2)], NUM_STEPS)
    alone = TorchEngine(Scored(bert), OPTIMIZER, {"text": 0.1}, 2)  # type: ignore[arg-type]
    untrained = Scored(bert).state_dict()
    train(alone, [[0, 1], [2, 3]])
    trained = {name for name, parameter in alone.model.named_parameters() if parameter.requires_grad}
    assert {name.partition(".lora_")[0].rpartition(".")[2] for name in trained if ".lora_" in name} == {"query", "value"}
    for name, value in alone.model.state_dict().items():
        assert torch.allclose(state.tensor(name), value, atol=1e-5), name
        assert torch.equal(value, untrained[name]) == (name not in trained), name
    assert all(f"{name}/exp_avg" in state for name in trained)


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    """Two users and four items, each with its text."""
    rows = [{"user_index": user, "item_index": item, "timestamp": item, "value": 1.0, "weight": 1.0, "is_target": True} for user, item in ((0, 0), (1, 1))]
    with staged_folder(str(tmp_path / "prepared")) as stage:
        for split in ("train", "valid", "test"):
            write_parquet(stage.path(split, "part-00000.parquet"), pa.Table.from_pylist(rows, PREPARED_INTERACTIONS_SCHEMA))
        write_parquet(stage.path("item_facts.parquet"), pa.table({"train_count": pa.array([1, 1, 0, 0], pa.int64())}))
        write_parquet(stage.path("users.parquet"), pa.table({"user_id": ["a", "b"]}))
        counts = {"num_items": 4, "num_users": 2, "columns": ["text"]}
        stage.commit(PREPARED_KIND, "day1", parents={"tables": "t"}, counts=counts, config={"data": {"base": None}})
    return PreparedData.open(str(tmp_path / "prepared"))


def model_config(bert: str, **settings: Any) -> ModelConfig:
    encoder = {"kind": "transformer_text", "path": bert, **settings}
    return ModelConfig.model_validate({"dimension": 4, "encoders": {"text": encoder}})


def model_of(config: ModelConfig, data: PreparedData) -> RecommenderModel:
    assets = {name: encoder.learn([]) for name, encoder in config.encoders.items()}
    return assemble_model(config, data, assets, 0, pretrained=True).eval()


def draw_updates(model: RecommenderModel) -> None:
    """Updates as training leaves them: B starts at zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)


def text_vectors(model: RecommenderModel) -> Tensor:
    encoder = model.named_encoders["text"]
    with torch.no_grad():
        return encoder(stack_inputs([encoder.prepare(text) for text in TEXTS]))


def write_run(uri: Path, config: ModelConfig, weights: dict[str, Tensor]) -> str:
    """A finished run with these weights."""
    write_bytes(str(uri / "weights.safetensors"), save({name: value.contiguous() for name, value in weights.items()}))
    write_json(str(uri / "assets" / "done.json"), {})
    settings = {"model": config.model_dump(mode="json")}
    write_manifest(str(uri), "run", "run", parents={"prepared": "day1"}, counts={}, config=settings, only=("weights.safetensors", "assets"))
    return str(uri)


@pytest.mark.parametrize(
    "settings",
    [
        {"train": "full"},
        {"train": "frozen"},
        {"train": "top_layers", "top_layers": 1},
        {"train": "lora", "lora": {"rank": 3}},
        {"train": "lora", "lora": {"rank": 2, "alpha": 6}},
    ],
    ids=lambda settings: f"{settings['train']}{settings.get('lora', '')}",
)
def test_a_run_that_starts_from_one_with_updates_begins_with_its_vectors(settings: dict[str, Any], data: PreparedData, bert: str, tmp_path: Path) -> None:
    older = model_config(bert, train="lora", lora={"rank": 2, "alpha": 6})
    old = model_of(older, data)
    draw_updates(old)
    run = write_run(tmp_path / "run", older, old.state_dict())
    new_config = model_config(bert, **settings)
    new = model_of(new_config, data)
    assert not torch.allclose(text_vectors(new), text_vectors(old), atol=1e-2)
    start = Start.find(run, data)
    assert start.kept_encoders(new_config.encoders) == {"text"}
    start.fill(new, new_config.encoders, data)
    assert torch.allclose(text_vectors(new), text_vectors(old), atol=1e-5)


def test_a_run_with_updates_starts_from_one_without(data: PreparedData, bert: str, tmp_path: Path) -> None:
    older = model_config(bert)
    old = model_of(older, data)
    with torch.no_grad():
        for parameter in old.encoders.parameters():
            parameter.add_(0.1)
    new_config = model_config(bert, train="lora")
    new = model_of(new_config, data)
    num_filled = Start.find(write_run(tmp_path / "run", older, old.state_dict()), data).fill(new, new_config.encoders, data)
    assert num_filled == len(old.state_dict())
    assert torch.allclose(text_vectors(new), text_vectors(old), atol=1e-5)


def test_the_feature_cache_reads_the_vectors_of_a_run_with_updates(data: PreparedData, bert: str, tmp_path: Path) -> None:
    older = model_config(bert, train="lora", lora={"rank": 2})
    old = model_of(older, data)
    draw_updates(old)
    run = write_run(tmp_path / "run", older, old.state_dict())
    frozen = model_config(bert, train="frozen", cache=True)
    assets = {name: encoder.learn([]) for name, encoder in frozen.encoders.items()}
    sources = [FeatureCache("", config.encoders, read_weights_of(run), GradientTrainConfig(), 1)._source("text", assets) for config in (older, frozen)]
    assert sources[0].identity == sources[1].identity
    encoder = frozen.encoders["text"].build(assets["text"], pretrained=False).eval()
    encoder.load_state_dict(dict(sources[1].weights))
    with torch.no_grad():
        vectors = encoder(stack_inputs([encoder.prepare(text) for text in TEXTS]))  # type: ignore[operator]
    assert torch.allclose(vectors, text_vectors(old), atol=1e-5)
