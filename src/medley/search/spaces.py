"""Search spaces: dotted settings of a Run, each with the values to try, from a YAML file that is checked against the Run.

    model.dimension: {int: [32, 128]}                     whole numbers, both ends included
    loss.temperature: {uniform: [0.5, 1.5]}               any number between
    train.optimizer.learning_rate: {log_uniform: [1.0e-3, 1.0e-2]}
    model.fusion: {choice: [{kind: gated}, {kind: concat, hidden_dimension: 64}]}

The configuration itself is a point of every space: its own value joins the choices when it is not among them.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import product
from typing import Any

from medley.config import Run, dump_run, override_run, read_yaml
from medley.schema import InputError

SEARCHABLE = ("loss", "model.dimension", "model.fusion", "model.head", "model.item_id", "model.users", "train.micro_batch_size", "train.optimizer")
"""Settings that may vary between trials on the same vectors: what stands behind the encoders, and how it is trained."""

KINDS = ("choice", "int", "log_uniform", "uniform")


@dataclass(frozen=True)
class Dimension:
    """One setting and its values: the two ends of a range, or the choices. place: file and line, for messages."""

    key: str
    kind: str
    values: tuple[Any, ...]
    place: str


@dataclass(frozen=True)
class Space:
    """What is searched. own_point: the parameters that stand for the configuration as it is (numbers outside a range at its nearer end)."""

    dimensions: tuple[Dimension, ...]
    own_point: Mapping[str, Any]

    def domains(self) -> dict[str, Any]:
        """Parameter → the domain that Ray Tune samples. Choices are JSON texts, since samplers want scalars."""
        from ray import tune

        make = {
            "choice": lambda values: tune.choice([_encode(value) for value in values]),
            "int": lambda ends: tune.randint(ends[0], ends[1] + 1),
            "log_uniform": lambda ends: tune.loguniform(float(ends[0]), float(ends[1])),
            "uniform": lambda ends: tune.uniform(float(ends[0]), float(ends[1])),
        }
        return {dimension.key: make[dimension.kind](dimension.values) for dimension in self.dimensions}

    def changes(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Sampled parameters as changes of the Run; none at the point that stands for the configuration as it is."""
        if dict(parameters) == dict(self.own_point):
            return {}
        return {
            dimension.key: json.loads(parameters[dimension.key]) if dimension.kind == "choice" else parameters[dimension.key] for dimension in self.dimensions
        }

    def corners(self, run: Run) -> Iterator[Run]:
        """The Run at both ends and at each choice of every setting; a setting below another is tried with each choice of that one."""
        for dimension in self.dimensions:
            above = [other for other in self.dimensions if dimension.key.startswith(f"{other.key}.")]
            keys = [other.key for other in above] + [dimension.key]
            for values in product(*(other.values for other in above), dimension.values):
                yield override_run(run, dict(zip(keys, values, strict=True)), dimension.place)


def read_space(path: str, run: Run) -> Space:
    """Read a space file and check it against the Run; any mistake is an InputError with its line."""
    entries, document = read_yaml(path)
    if not entries:
        raise InputError(f"'{path}' names no setting", "at least one", "see tune/spaces for examples")
    dimensions = [_dimension(key, entry, f"{path} line {document.lc.key(key)[0] + 1}") for key, entry in entries.items()]
    # A group of settings before the settings in it, so that its choices do not overwrite theirs.
    space = Space(tuple(sorted(dimensions, key=lambda dimension: dimension.key.count("."))), {})
    for _ in space.corners(run):
        pass
    for dimension in dimensions:
        _check_searchable(dimension)
    return _with_own_point(space, run)


def _dimension(key: str, entry: Any, place: str) -> Dimension:
    """One checked line of the file."""
    if not isinstance(entry, Mapping) or len(entry) != 1 or next(iter(entry)) not in KINDS:
        found = next(iter(entry), None) if isinstance(entry, Mapping) else None
        hint = get_close_matches(str(found), KINDS, n=1)
        remedy = f"did you mean '{hint[0]}'?" if hint else f"write for example {key}: {{choice: [1, 2]}}"
        raise InputError(f"'{place}': '{key}' is {entry!r}", f"one of {', '.join(KINDS)} with its values", remedy)
    kind, values = next(iter(entry.items()))
    if kind == "choice":
        if not isinstance(values, list) or not values:
            raise InputError(f"'{place}': the choices of '{key}' are {values!r}", "a list of values", f"write {key}: {{choice: [VALUE, …]}}")
        return Dimension(key, kind, tuple(values), place)
    wanted = int if kind == "int" else (int, float)
    is_range = isinstance(values, list) and len(values) == 2 and all(isinstance(end, wanted) and not isinstance(end, bool) for end in values)
    if not is_range or values[0] >= values[1] or (kind == "log_uniform" and values[0] <= 0):
        expected = {"int": "two whole numbers", "log_uniform": "two numbers above 0", "uniform": "two numbers"}[kind]
        raise InputError(f"'{place}': the range of '{key}' is {values!r}", f"{expected}, the lower first", f"write {key}: {{{kind}: [LOW, HIGH]}}")
    return Dimension(key, kind, tuple(values), place)


def _check_searchable(dimension: Dimension) -> None:
    key, place = dimension.key, dimension.place
    if not any(key == root or key.startswith(f"{root}.") for root in SEARCHABLE):
        raise InputError(
            f"'{place}': a search cannot vary '{key}', because its trials share the data, the seed, the measure and the vectors of the base run's encoders",
            f"settings at or below {', '.join(SEARCHABLE)}",
            "remove it from the space and set it in the configuration",
        )


def _with_own_point(space: Space, run: Run) -> Space:
    """The space with the configuration's own values among the choices, and its point."""
    dimensions, as_it_is = [], override_run(run, {})
    point: dict[str, Any] = {}
    for dimension in space.dimensions:
        own = _value_at(dump_run(run), dimension.key)
        if dimension.kind == "choice":
            same = [value for value in dimension.values if override_run(run, {dimension.key: value}) == as_it_is]
            chosen = same[0] if same else own
            dimension = dimension if same else replace(dimension, values=(*dimension.values, own))
            point[dimension.key] = _encode(chosen)
        else:
            low, high = dimension.values
            nearest = min(max(own if own is not None else low, low), high)
            point[dimension.key] = int(nearest) if dimension.kind == "int" else float(nearest)
        dimensions.append(dimension)
    return Space(tuple(dimensions), point)


def _value_at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _encode(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
