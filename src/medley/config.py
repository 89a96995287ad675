"""The Run tree: every setting of every stage, read from YAML, checked at the door. The one place that knows all rooms' configurations."""

import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError

from medley.data.convert import ConvertConfig
from medley.data.prepare import DataConfig
from medley.data.stream import StreamConfig
from medley.losses import InBatchSoftmaxConfig, LossConfig
from medley.manifest import absolute_uri, join_uri, read_bytes
from medley.model import ModelConfig
from medley.schema import InputError
from medley.search.settings import AblationConfig, SearchConfig
from medley.training.config import GradientTrainConfig, TrainConfig
from medley.training.evaluate import EvaluateConfig

PATH_KEYS = frozenset({"storage", "tables", "prepared", "raw", "mapping", "path", "weights", "start_from", "space"})
"""Settings that hold a path; relative ones are made absolute here, because workers and replicas run elsewhere."""


class Inputs(BaseModel):
    """Where a stage finds its input when that is not where the run's own stages write."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tables: str | None = None
    """null: STORAGE/tables"""
    prepared: str | None = None
    """null: STORAGE/prepared/FINGERPRINT"""


class Run(BaseModel):
    """One configuration file. `storage` and `name` say where everything is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    storage: str = "out"
    """root folder, any pyarrow.fs URI"""
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    """slug; the same name with the same settings resumes, with others it is refused"""
    seed: int = Field(default=0, ge=0)
    """decides every random choice"""
    inputs: Inputs = Inputs()
    convert: ConvertConfig | None = None
    """raw data for jobs.pipeline to convert; null: the tables are there"""
    data: DataConfig = DataConfig()
    stream: StreamConfig = StreamConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = InBatchSoftmaxConfig()
    train: TrainConfig = GradientTrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    search: SearchConfig = SearchConfig()
    ablation: AblationConfig = AblationConfig()

    @model_validator(mode="after")
    def _check_tables(self) -> Self:
        is_sharded = isinstance(self.train, GradientTrainConfig) and self.train.optimizer.table_update != "adamw"
        if is_sharded and self.model.propagation is not None:
            raise ValueError("train.optimizer.table_update adamw where model.propagation is set, which spreads whole tables")
        return self

    @property
    def gradient(self) -> GradientTrainConfig:
        """The settings of the gradient loop; only for runs of that kind."""
        assert isinstance(self.train, GradientTrainConfig)
        return self.train

    @property
    def tables_uri(self) -> str:
        """The tables folder."""
        return self.inputs.tables or join_uri(self.storage, "tables")

    @property
    def prepared_root(self) -> str:
        """Folder of prepared sets, one per fingerprint."""
        return join_uri(self.storage, "prepared")

    @property
    def run_uri(self) -> str:
        """Folder of the training run."""
        return join_uri(self.storage, "runs", self.name)

    @property
    def search_uri(self) -> str:
        """Folder of the search."""
        return join_uri(self.storage, "searches", self.name)

    @property
    def bundle_root(self) -> str:
        """Folder of the run's bundles, one per version."""
        return join_uri(self.storage, "bundles", self.name)


def load_run(path: str, overrides: Sequence[str] = ()) -> Run:
    """Read a YAML file, apply `dotted.key=value` overrides, check everything. Any mistake is an InputError with its line."""
    values, document = read_yaml(path)
    for override in overrides:
        _apply(values, override)
    return make_run(values, path, document)


def read_yaml(path: str) -> tuple[dict[str, Any], CommentedMap]:
    """A YAML mapping as plain values, and the parsed document, which knows their lines."""
    document = _parse_yaml(read_bytes(absolute_uri(path)).decode("utf-8", errors="replace"), path)
    return _plain(document), document


def make_run(values: Mapping[str, Any], place: str, document: CommentedMap | None = None) -> Run:
    """A Run from plain values; `place` and the parsed document (with its lines) serve the message of a mistake."""
    if isinstance(values.get("train", {}), Mapping):
        values = {**values, "train": {"kind": GradientTrainConfig.model_fields["kind"].default, **values.get("train", {})}}
    try:
        return Run.model_validate(_absolute_paths({"storage": Run.model_fields["storage"].default, **values}))
    except ValidationError as error:
        raise _input_error(error, values, place, document) from None


def dump_run(run: Run) -> dict[str, Any]:
    """Plain JSON values: `make_run` gives the same Run again."""
    return json.loads(run.model_dump_json())


def override_run(run: Run, changes: Mapping[str, Any], place: str = "overrides") -> Run:
    """The Run with dotted keys replaced; what searches and pipelines use. place: where the changes stand, for the message of a mistake."""
    values = dump_run(run)
    for key, value in changes.items():
        _set(values, key, value)
    return make_run(values, place)


def _parse_yaml(text: str, path: str) -> CommentedMap:
    try:
        document = YAML(typ="rt").load(text)
    except YAMLError as error:
        raise InputError(f"'{path}' is not YAML ({' '.join(str(error).split())})", "a YAML mapping without duplicate keys", "correct the line named") from None
    if not isinstance(document, CommentedMap):
        raise InputError(f"'{path}' holds {type(document).__name__}", "a YAML mapping of settings", "see jobs/configs for examples")
    return document


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    # The round-trip loader gives numbers and strings types of its own.
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain(value)
    return value


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"override '{override}'", "dotted.key=value", "write for example train.epochs=3")
    try:
        value = _plain(YAML(typ="rt").load(text)) if text else ""
    except YAMLError:
        value = text
    _set(values, key, value)


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for number, parent in enumerate(parents, start=1):
        entry = values.setdefault(parent, {})
        if entry is None:
            entry = values[parent] = {}
        if not isinstance(entry, dict):
            raise InputError(f"override '{key}': '{'.'.join(parents[:number])}' is {entry!r}", "a group of settings", "correct the key")
        values = entry
    values[last] = value


def _absolute_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: absolute_uri(entry) if key in PATH_KEYS and isinstance(entry, str) else _absolute_paths(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_absolute_paths(entry) for entry in value]
    return value


def _input_error(error: ValidationError, values: Mapping[str, Any], place: str, document: CommentedMap | None) -> InputError:
    """The first mistake of a validation as our three-part message."""
    first = error.errors(include_url=False)[0]
    keys = _keys_in_data(first["loc"], values)
    dotted = ".".join(keys)
    line = _line_of(document, keys)
    where = f"'{place}'{f' line {line}' if line else ''}"
    if first["type"] == "extra_forbidden":
        allowed = _allowed_keys(Run, values, keys[:-1])
        hint = get_close_matches(keys[-1], allowed, n=1)
        return InputError(
            f"{where}: unknown setting '{dotted}'",
            f"one of {', '.join(sorted(allowed))}" if allowed else "a known setting",
            f"did you mean '{hint[0]}'?" if hint else "remove it",
        )
    if first["type"] == "missing":
        return InputError(f"{where}: no setting '{dotted}'", "a value for it", "add it")
    if first["type"].startswith("union_tag"):
        kinds = [str(member.model_fields["kind"].default) for member in _members_at(Run, values, keys)]
        tag = first.get("ctx", {}).get("tag")
        hint = get_close_matches(str(tag), kinds, n=1)
        got = f"{where}: '{dotted}.kind' is {tag!r}" if tag else f"{where}: '{dotted}' has no kind"
        return InputError(got, f"one of {', '.join(kinds)}", f"did you mean '{hint[0]}'?" if hint else "choose one of them")
    text = first["msg"].removeprefix("Value error, ")
    return InputError(f"{where}: '{dotted}' is {_short(first['input'])}", text[0].lower() + text[1:], "correct the value")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _keys_in_data(location: Iterable[int | str], values: Any) -> list[str]:
    """The location without the union tags that pydantic puts between keys."""
    keys = []
    location = list(location)
    for number, part in enumerate(location):
        is_last = number == len(location) - 1
        is_key = isinstance(values, Mapping) and part in values
        is_place = isinstance(values, list | tuple) and isinstance(part, int) and part < len(values)
        if is_key or is_place:
            keys.append(str(part))
            values = values[part]
        elif is_last and not (isinstance(values, Mapping) and values.get("kind") == part):
            keys.append(str(part))
    return keys


def _line_of(document: Any, keys: Sequence[str]) -> int | None:
    """Line (from 1) of the deepest of the keys that the file has."""
    line = None
    for key in keys:
        if isinstance(document, CommentedMap) and key in document:
            line = document.lc.key(key)[0] + 1
            document = document[key]
        elif isinstance(document, CommentedSeq) and key.isdigit() and int(key) < len(document):
            line = document.lc.item(int(key))[0] + 1
            document = document[int(key)]
        else:
            break
    return line


def _allowed_keys(model: type[BaseModel], values: Any, keys: Sequence[str]) -> list[str]:
    """Field names at a place of the tree; in a union those of the member that `kind` names."""
    if not keys:
        return list(model.model_fields)
    chosen = _chosen(_members_at(model, values, keys), _value_at(values, keys))
    return list(chosen.model_fields) if chosen else []


def _members_at(model: type[BaseModel], values: Any, keys: Sequence[str]) -> list[type[BaseModel]]:
    """The models that may stand at a place of the tree: several in a union."""
    members, annotation = [model], None
    for number, key in enumerate(keys):
        if get_origin(annotation) in (dict, tuple):
            annotation = get_args(annotation)[1 if get_origin(annotation) is dict else 0]
        else:
            chosen = _chosen(members, _value_at(values, keys[:number]))
            if chosen is None or key not in chosen.model_fields:
                return []
            annotation = chosen.model_fields[key].annotation
        members = _models_in(annotation)
    return members


def _chosen(members: Sequence[type[BaseModel]], value: Any) -> type[BaseModel] | None:
    """The member whose kind the value names, or the only one."""
    kind = value.get("kind") if isinstance(value, Mapping) else None
    named = (member for member in members if "kind" in member.model_fields and member.model_fields["kind"].default == kind)
    return next(named, members[0] if len(members) == 1 else None)


def _value_at(values: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        if isinstance(values, Mapping):
            values = values.get(key)
        elif isinstance(values, list | tuple) and key.isdigit() and int(key) < len(values):
            values = values[int(key)]
        else:
            return None
    return values


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        arguments = arguments[:1]
    return [model for argument in arguments for model in _models_in(argument)]


def load_converter(kind: str, settings: Sequence[str]) -> ConvertConfig:
    """A converter's configuration from `key=value` settings, checked like the `convert` part of a Run."""
    values: dict[str, Any] = {"kind": kind}
    for setting in settings:
        _apply(values, setting)
    config = make_run({"name": "convert", "convert": values}, "command line").convert
    assert config is not None
    return config
