"""Every mistake in a configuration is refused at the door with its place, what is allowed and what to do."""

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from medley.config import Run, dump_run, load_converter, load_run, make_run, override_run
from medley.data.convert.synthetic import SyntheticConfig
from medley.encoders.resnet import ResNetConfig
from medley.fusion.concat import ConcatFusionConfig
from medley.schema import InputError
from medley.users.sum import SumUserConfig

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))


def write(tmp_path: Path, text: str) -> str:
    """A configuration file with this text."""
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return str(path)


def refused(tmp_path: Path, text: str, *overrides: str) -> InputError:
    """The mistake that loading this text ends in."""
    with pytest.raises(InputError) as caught:
        load_run(write(tmp_path, text), overrides)
    return caught.value


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_configuration_loads_and_its_first_line_says_how_it_is_run(path: Path):
    assert load_run(str(path)).name
    command, *facts = [part.strip() for part in path.read_text().splitlines()[0].removeprefix("# ").split("|")]
    found = re.match(r"python -m ((?:jobs|tune)\.\w+) (.*)", command)
    assert found, command
    assert (ROOT / f"{found[1].replace('.', '/')}.py").is_file()
    assert f"jobs/configs/{path.name}" in found[2].split()
    assert len(facts) >= 3, "hardware | expected time | expected metric"
    assert all(facts)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every pydantic model that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation)[: 1 if get_origin(annotation) is Annotated else None]:
        yield from models_in(argument)


def tree(model: type[BaseModel], seen: dict[type[BaseModel], None]) -> dict[type[BaseModel], None]:
    """A model and all models below it."""
    if model not in seen:
        seen[model] = None
        for field in model.model_fields.values():
            for child in models_in(field.annotation):
                tree(child, seen)
    return seen


TREE = list(tree(Run, {}))


@pytest.mark.parametrize("model", TREE, ids=lambda model: model.__name__)
def test_every_model_of_the_tree_is_frozen_and_forbids_unknown_keys(model: type[BaseModel]):
    assert (model.model_config.get("frozen"), model.model_config.get("extra")) == (True, "forbid")


def test_the_walk_of_the_tree_finds_members_of_unions_mappings_and_tuples():
    assert {ResNetConfig, SumUserConfig, ConcatFusionConfig, SyntheticConfig} <= set(TREE)
    assert len(TREE) > 20


def test_every_union_in_the_tree_is_told_apart_by_kind():
    for model in TREE:
        for name, field in model.model_fields.items():
            members = [entry for entry in models_in(field.annotation) if get_origin(field.annotation) in (Union, types.UnionType)]
            if len(members) > 1:
                kinds = [member.model_fields["kind"].default for member in members]
                assert len(set(kinds)) == len(kinds), f"{model.__name__}.{name}"


def test_an_unknown_setting_is_refused_with_its_line_and_the_likely_one(tmp_path: Path):
    error = refused(tmp_path, "name: a\ntrain:\n  epochs: 3\n  worker: 2\n")
    assert f"'{tmp_path}/run.yaml' line 4: unknown setting 'train.worker'" in error.got
    assert "workers" in error.expected.split(", ")
    assert error.remedy == "did you mean 'workers'?"


def test_an_unknown_setting_at_the_top_without_a_likely_one_is_to_be_removed(tmp_path: Path):
    error = refused(tmp_path, "name: a\nzzzzzz: 1\n")
    assert (error.got.endswith("line 2: unknown setting 'zzzzzz'"), error.remedy) == (True, "remove it")


def test_an_unknown_setting_of_a_union_member_names_the_settings_of_that_member(tmp_path: Path):
    error = refused(tmp_path, "name: a\nmodel:\n  encoders:\n    cover:\n      kind: resnet\n      widht: 16\n")
    assert "line 6: unknown setting 'model.encoders.cover.widht'" in error.got
    assert error.remedy == "did you mean 'width'?"
    assert "small_stem" in error.expected
    assert "vocabulary_size" not in error.expected


def test_an_unknown_setting_in_a_list_names_its_place(tmp_path: Path):
    error = refused(tmp_path, "name: a\nmodel:\n  users:\n    kind: sum\n    parts:\n      - {kind: id}\n      - {kind: history_mean, history_lenght: 3}\n")
    assert "line 7: unknown setting 'model.users.parts.1.history_lenght'" in error.got
    assert error.remedy == "did you mean 'history_length'?"


def test_an_unknown_setting_of_an_optional_union_is_found_too(tmp_path: Path):
    error = refused(tmp_path, "name: a\nconvert:\n  kind: synthetic\n  num_itmes: 20\n")
    assert "line 4: unknown setting 'convert.num_itmes'" in error.got
    assert error.remedy == "did you mean 'num_items'?"


def test_a_value_of_the_wrong_type_is_refused_with_its_line_and_value(tmp_path: Path):
    error = refused(tmp_path, "name: a\ntrain:\n  epochs: many\n")
    assert error.got.endswith("line 3: 'train.epochs' is 'many'")
    assert "integer" in error.expected


def test_a_value_out_of_range_is_refused(tmp_path: Path):
    error = refused(tmp_path, "name: a\ntrain: {epochs: 0}\n")
    assert error.got.endswith("line 2: 'train.epochs' is 0")
    assert error.expected == "input should be greater than or equal to 1"


def test_a_check_over_several_settings_has_its_own_words(tmp_path: Path):
    error = refused(tmp_path, "name: a\nmodel:\n  encoders:\n    image: {kind: resnet, cache: true}\n")
    assert "line 4: 'model.encoders.image' is" in error.got
    assert "train: frozen where cache is true" in error.expected


@pytest.mark.parametrize(("kind", "hint"), [("gatd", "did you mean 'gated'?"), ("zzz", "choose one of them")])
def test_an_unknown_kind_is_refused_with_the_kinds_there_are(tmp_path: Path, kind: str, hint: str):
    error = refused(tmp_path, f"name: a\nmodel:\n  fusion: {{kind: {kind}}}\n")
    assert error.got.endswith(f"line 3: 'model.fusion.kind' is '{kind}'")
    assert {"gated", "concat"} <= set(error.expected.removeprefix("one of ").split(", "))
    assert error.remedy == hint


def test_a_missing_kind_is_refused(tmp_path: Path):
    error = refused(tmp_path, "name: a\nmodel:\n  encoders:\n    text: {column: text}\n")
    assert "line 4: 'model.encoders.text' has no kind" in error.got
    assert "subword" in error.expected


def test_a_missing_name_is_refused(tmp_path: Path):
    error = refused(tmp_path, "seed: 1\n")
    assert (error.got.endswith("run.yaml': no setting 'name'"), error.remedy) == (True, "add it")


@pytest.mark.parametrize("name", ["Upper", "a/b", "", "..", "-a", "a" * 65])
def test_a_name_that_is_no_slug_is_refused(name: str):
    with pytest.raises(InputError, match="'name' is"):
        make_run({"name": name}, "test")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\nname: b\n", 'duplicate key "name"'),
        ("name: a\ntrain:\n  epochs: 1\n  epochs: 2\n", 'duplicate key "epochs"'),
        ("name: a\ntrain:\n\tepochs: 1\n", "cannot start any token"),
        ("name: [a\n", "is not YAML"),
    ],
)
def test_a_broken_file_is_refused_with_the_line(tmp_path: Path, text: str, words: str):
    error = refused(tmp_path, text)
    assert words in str(error)
    assert re.search(r"line \d+", error.got)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n", "3\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str):
    assert refused(tmp_path, text).expected == "a YAML mapping of settings"


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"absent\.yaml' does not exist"):
        load_run(str(tmp_path / "absent.yaml"))


def test_overrides_replace_and_add_settings(tmp_path: Path):
    path = write(tmp_path, "name: a\ntrain: {epochs: 3, workers: 2}\n")
    overrides = ["train.epochs=7", "train.optimizer.learning_rate=1e-4", "model.encoders.text={kind: subword, dimension: 8}", "model.item_id=null", "name=b"]
    run = load_run(path, overrides)
    assert (run.name, run.train.epochs, run.train.workers, run.train.optimizer.learning_rate) == ("b", 7, 2, 1e-4)
    assert (run.model.encoders["text"].dimension, run.model.item_id) == (8, None)


def test_the_last_of_equal_overrides_counts(tmp_path: Path):
    assert load_run(write(tmp_path, "name: a\n"), ["seed=1", "seed=2"]).seed == 2


def test_an_override_value_may_hold_equals_signs_and_colons(tmp_path: Path):
    run = load_run(write(tmp_path, "name: a\n"), ["storage=s3://bucket/a=b"])
    assert run.storage == "s3://bucket/a=b"


@pytest.mark.parametrize("override", ["train.epochs", "=3", ""])
def test_an_override_without_key_or_value_is_refused(tmp_path: Path, override: str):
    assert refused(tmp_path, "name: a\n", override).expected == "dotted.key=value"


def test_an_override_below_a_plain_value_is_refused(tmp_path: Path):
    error = refused(tmp_path, "name: a\ntrain: {epochs: 3}\n", "train.epochs.x=1")
    assert error.got == "override 'train.epochs.x': 'train.epochs' is 3"


def test_an_unknown_override_is_refused_without_a_line(tmp_path: Path):
    error = refused(tmp_path, "name: a\n", "train.epoch=1")
    assert error.got == f"'{tmp_path}/run.yaml': unknown setting 'train.epoch'"
    assert error.remedy == "did you mean 'epochs'?"


def test_relative_paths_become_absolute_and_uris_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text = "name: a\nstorage: out\nconvert: {kind: catalogue, raw: raw, mapping: m.yaml}\ninputs: {tables: s3://b/t, prepared: p}\n"
    text += "model:\n  encoders:\n    image: {kind: torchvision, architecture: resnet18, weights: w.pth}\n"
    text += "    text: {kind: transformer_text, path: minilm}\ntrain: {start_from: old}\n"
    run = load_run(write(tmp_path, text), ["search.space=space.yaml"])
    assert (run.storage, run.run_uri, run.prepared_root) == (f"{tmp_path}/out", f"{tmp_path}/out/runs/a", f"{tmp_path}/out/prepared")
    assert (run.convert.raw, run.convert.mapping) == (f"{tmp_path}/raw", f"{tmp_path}/m.yaml")
    assert (run.inputs.tables, run.inputs.prepared) == ("s3://b/t", f"{tmp_path}/p")
    assert (run.model.encoders["image"].weights, run.model.encoders["text"].path) == (f"{tmp_path}/w.pth", f"{tmp_path}/minilm")
    assert (run.train.start_from, run.search.space) == (f"{tmp_path}/old", f"{tmp_path}/space.yaml")


def test_the_default_storage_is_absolute_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert load_run(write(tmp_path, "name: a\n")).storage == f"{tmp_path}/out"


def test_a_modality_may_have_the_name_of_a_path_setting(tmp_path: Path):
    run = load_run(write(tmp_path, "name: a\nmodel:\n  encoders:\n    weights: {kind: tags, column: mapping}\n"))
    assert run.model.encoders["weights"].column == "mapping"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_dumped_run_is_made_again(path: Path):
    run = load_run(str(path))
    assert make_run(dump_run(run), "dump") == run


def test_a_dumped_run_with_every_kind_of_value_is_made_again(tmp_path: Path):
    values = {
        "name": "a",
        "storage": "s3://bucket/out",
        "data": {"events": {"view": 1, "buy": 5.5}, "target_events": ["buy"], "split": {"kind": "time"}},
        "model": {
            "encoders": {
                "text": {"kind": "subword"},
                "tags": {"kind": "tags", "column": "genres"},
                "vector": {"kind": "features", "column": "v", "train": "frozen"},
            },
            "fusion": {"kind": "concat", "hidden_dimension": 7},
            "users": {"kind": "sum", "parts": [{"kind": "id"}, {"kind": "attributes", "columns": ["country"]}, {"kind": "history_mean"}]},
        },
        "loss": {"kind": "mse"},
    }
    run = make_run(values, "test")
    assert make_run(dump_run(run), "dump") == run
    assert run.model.users.parts[1].columns == ("country",)


def test_override_run_changes_only_what_it_names():
    run = make_run({"name": "a", "storage": "/out", "train": {"epochs": 3}}, "test")
    changed = override_run(run, {"train.epochs": 9, "model.fusion": {"kind": "concat"}})
    assert (changed.train.epochs, changed.model.fusion.kind) == (9, "concat")
    assert changed.model_copy(update={"train": run.train, "model": run.model}) == run
    with pytest.raises(InputError, match=r"'overrides': unknown setting 'train\.epoch'"):
        override_run(run, {"train.epoch": 1})


def test_a_converter_is_made_from_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert load_converter("synthetic", ["num_items=50", "seed=3"]) == SyntheticConfig(num_items=50, seed=3)
    assert load_converter("catalogue", ["raw=r", "mapping=m.yaml"]).raw == f"{tmp_path}/r"
    with pytest.raises(InputError, match=r"unknown setting 'convert\.num_item'.*did you mean 'num_items'"):
        load_converter("synthetic", ["num_item=50"])
