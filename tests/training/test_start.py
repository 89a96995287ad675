"""A run begins with an older run's weights: by name, and where users and items were added, row by row."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save

from medley.data.prepare import PREPARED_KIND
from medley.data.prepared import PreparedData
from medley.encoders.subword import SubwordConfig
from medley.manifest import staged_folder, write_bytes, write_json, write_manifest, write_parquet
from medley.model import ModelConfig, RecommenderModel
from medley.schema import PREPARED_INTERACTIONS_SCHEMA, InputError
from medley.training.assemble import assemble_model
from medley.training.start import Start

TEXT = SubwordConfig(vocabulary_size=50, dimension=4)
MODEL = ModelConfig.model_validate(
    {
        "dimension": 2,
        "users": {"kind": "sum", "parts": [{"kind": "id"}, {"kind": "attributes", "columns": ["country"]}]},
        "head": {"kind": "mf", "user_bias": True},
    }
)


def write_prepared(uri: Path, identity: str, countries: Sequence[str | None], num_items: int, base: tuple[Path, str] | None = None) -> PreparedData:
    """A prepared set in which user number u took item u and the users' country is as given; written without Ray."""
    num_users = len(countries)
    rows = [{"user_index": user, "item_index": user, "timestamp": user, "value": 2.0, "weight": 1.0, "is_target": True} for user in range(num_users)]
    counts = [1] * num_users + [0] * (num_items - num_users)
    with staged_folder(str(uri)) as stage:
        for split in ("train", "valid", "test"):
            write_parquet(stage.path(split, "part-00000.parquet"), pa.Table.from_pylist(rows, PREPARED_INTERACTIONS_SCHEMA))
        write_parquet(stage.path("item_facts.parquet"), pa.table({"train_count": pa.array(counts, pa.int64())}))
        write_parquet(stage.path("users.parquet"), pa.table({"country": pa.array(countries, pa.string())}))
        stage.commit(
            PREPARED_KIND,
            identity,
            parents={"tables": "t", **({"base": base[1]} if base else {})},
            counts={"num_items": num_items, "num_users": num_users, "columns": ["text"]},
            config={"data": {"base": str(base[0]) if base else None}},
        )
    return PreparedData.open(str(uri))


def write_run(uri: Path, prepared: str, weights: dict[str, torch.Tensor], *, has_assets: bool = True) -> str:
    """A finished run with these weights and the assets of one encoder."""
    write_bytes(str(uri / "weights.safetensors"), save(weights))
    if has_assets:
        write_bytes(str(uri / "assets" / "text" / "tokens.json"), b"old vocabulary")
        write_json(str(uri / "assets" / "done.json"), {"text": ["tokens.json"]})
    config = {"model": {"encoders": {"text": TEXT.model_dump(mode="json")}}}
    files = ("weights.safetensors", *(["assets"] if has_assets else []))
    write_manifest(str(uri), "run", f"run-of-{prepared}", parents={"prepared": prepared}, counts={}, config=config, only=files)
    return str(uri)


def model_of(data: PreparedData, seed: int) -> RecommenderModel:
    """An untrained model of ids, countries and biases."""
    return assemble_model(MODEL, data, {}, seed, pretrained=True)


@pytest.fixture
def days(tmp_path: Path) -> list[PreparedData]:
    """Three prepared sets, each an extension of the one before, and one that extends nothing."""
    first = write_prepared(tmp_path / "p1", "day1", ["SE", None, "DE"], 5)
    second = write_prepared(tmp_path / "p2", "day2", ["SE", None, "DE", "NO"], 6, (tmp_path / "p1", "day1"))
    third = write_prepared(tmp_path / "p3", "day3", ["SE", None, "DE", "NO", "AT"], 7, (tmp_path / "p2", "day2"))
    return [first, second, third, write_prepared(tmp_path / "p4", "alone", ["SE", None, "DE", "NO", "AT"], 7)]


def test_known_rows_are_taken_over_and_new_ones_stay_as_the_seed_made_them(days: list[PreparedData], tmp_path: Path):
    old = model_of(days[0], seed=1)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view_as(parameter) + 100.0)
    run = write_run(tmp_path / "run", "day1", old.state_dict())
    fresh = model_of(days[2], seed=2).state_dict()
    filled = model_of(days[2], seed=2)
    assert Start.find(run, days[2]).fill(filled, {}, days[2]) == 5
    model = filled.state_dict()
    for name, known in (("item_id.weight", 5), ("users.parts.0.embedding.weight", 3), ("head.item_bias.weight", 5), ("head.user_bias.weight", 3)):
        assert model[name][:known].equal(old.state_dict()[name]), name
        assert model[name][known:].equal(fresh[name][known:]), name
    # Old categories: null, DE, SE; new ones: null, AT, DE, NO, SE.
    countries = "users.parts.1.embeddings.0.weight"
    assert model[countries][[0, 2, 4]].equal(old.state_dict()[countries])
    assert model[countries][[1, 3]].equal(fresh[countries][[1, 3]])
    # What the new data say of themselves: five items with one train row, two without.
    assert model["train_count_N"].tolist() == [1, 1, 1, 1, 1, 0, 0]


def test_over_the_same_data_every_weight_is_taken_over(days: list[PreparedData], tmp_path: Path):
    old = model_of(days[0], seed=1)
    run = write_run(tmp_path / "run", "day1", old.state_dict())
    model = model_of(days[0], seed=2)
    start = Start.find(run, days[0])
    start.fill(model, {}, days[0])
    assert all(value.equal(old.state_dict()[name]) for name, value in model.state_dict().items())
    assert start.assets({"text": TEXT}) == {}


def test_encoders_go_on_with_their_vocabulary_unless_their_settings_changed(days: list[PreparedData], tmp_path: Path):
    start = Start.find(write_run(tmp_path / "run", "day1", {"a": torch.zeros(1)}), days[1])
    assert start.assets({"text": TEXT}) == {"text": {"tokens.json": b"old vocabulary"}}
    assert start.assets({"text": TEXT.model_copy(update={"learning_rate": 0.5})}) == {"text": {"tokens.json": b"old vocabulary"}}
    assert start.assets({"text": TEXT.model_copy(update={"vocabulary_size": 60})}) == {}
    assert start.assets({"other": TEXT}) == {}


@pytest.mark.parametrize(("trained_on", "reads"), [("day2", 0), ("day1", 3), ("lost", 2)])
def test_a_run_of_data_that_these_do_not_extend_is_refused(trained_on: str, reads: int, days: list[PreparedData], tmp_path: Path):
    run = write_run(tmp_path / "run", trained_on, {"a": torch.zeros(1)})
    with pytest.raises(
        InputError, match=f"was trained on prepared set '{trained_on}', this run reads '.*', which does not extend it; expected a run"
    ) as caught:
        Start.find(run, days[reads])
    assert caught.value.remedy == f"prepare with data.base=PREPARED_ROOT/{trained_on}, or leave train.start_from out"


def test_a_start_without_vocabularies_is_refused_where_the_data_grew(days: list[PreparedData], tmp_path: Path):
    search = write_run(tmp_path / "search", "day1", {"a": torch.zeros(1)}, has_assets=False)
    Start.find(search, days[0])
    with pytest.raises(InputError, match="is no run, and the prepared set has grown since; expected the folder of a finished run"):
        Start.find(search, days[1])
