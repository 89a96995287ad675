"""Starting from an older run's weights: one of the same prepared set, or of an earlier set that this one extends (`data.base`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load
from torch import Tensor

from medley.data.base import PREPARED_KIND
from medley.data.prepared import PreparedData
from medley.encoders import EncoderConfig
from medley.encoders.lora import base_names, merge_lora
from medley.encoders.settings import TRAINING_FIELDS
from medley.manifest import find_manifest, join_uri, read_bytes, read_json, read_manifest, verify_files
from medley.model import RecommenderModel
from medley.schema import InputError
from medley.training.assemble import Assets
from medley.training.checkpoint import WEIGHTS_FILE, load_matching_weights
from medley.training.sharded_table import ShardedTable
from medley.users.attributes import AttributesUser


@dataclass(frozen=True)
class Start:
    """A finished run or search whose weights another run begins with; `Start.find` checks that their data belong together."""

    uri: str
    manifest: Mapping[str, Any]
    older: PreparedData | None
    """what it was trained on, where this run's prepared set extends that one; None where both are the same"""

    @classmethod
    def find(cls, uri: str, data: PreparedData) -> Self:
        """The start of a run over `data`; an InputError unless it was trained on the same set or on one that `data` extends, in any number of steps."""
        manifest = start_manifest(uri)
        trained_on = manifest["parents"].get("prepared")
        older = None if trained_on == data.identity else _find_ancestor(data, trained_on, uri)
        if older is not None and "assets/done.json" not in manifest["files"]:
            raise InputError(
                f"train.start_from='{uri}' is no run, and the prepared set has grown since",
                "the folder of a finished run, which keeps its encoders' vocabularies",
                "name a run, or prepare without data.base",
            )
        return cls(uri, manifest, older)

    def kept_encoders(self, encoders: Mapping[str, EncoderConfig]) -> set[str]:
        """Encoders that mean the same here as there: equal but for how they are trained."""
        before = self.manifest["config"]["model"]["encoders"]
        return {name for name, config in encoders.items() if name in before and _meaning(before[name]) == _meaning(config.model_dump(mode="json"))}

    def assets(self, encoders: Mapping[str, EncoderConfig]) -> Assets:
        """Vocabularies and statistics to go on with, those of `kept_encoders`: learned anew from more data, they would give the old weights another meaning.

        Nothing where the data are the same: learning them again gives the same.
        """
        if self.older is None:
            return {}
        verify_files(self.uri, self.manifest, prefix="assets/")
        files = read_json(join_uri(self.uri, "assets", "done.json"))
        kept = sorted(self.kept_encoders(encoders))
        return {name: {file: read_bytes(join_uri(self.uri, "assets", name, file)) for file in files[name]} for name in kept}

    def fill(self, model: RecommenderModel, encoders: Mapping[str, EncoderConfig], data: PreparedData) -> int:
        """Take over the weights of equal name and shape; returns how many.

        Where the data have grown, known users, items and attribute values keep their rows of the tables. New rows keep the values that the seed gave
        them, as in a run from nothing: a row that no gradient has touched must not look learned, and users without train rows stay at zero, which
        ranks by content and bias alone. What the model was told of the data (counts, mean value) is that of the new data.
        """
        weights = base_names(read_weights_of(self.uri), model.state_dict().keys())
        num_tables = _fill_sharded_tables(weights, model, self.older, data)
        if self.older is not None:
            weights = _grown(weights, model, self.kept_encoders(encoders), self.older, data)
        return num_tables + load_matching_weights(model, weights)


def start_manifest(uri: str) -> dict[str, Any]:
    """The manifest of a finished run or search that has weights."""
    manifest = find_manifest(uri)
    if manifest is None or WEIGHTS_FILE not in manifest["files"]:
        raise InputError(
            f"'{uri}' holds {'no weights' if manifest else 'nothing finished'}", "the folder of a finished run or search", "correct train.start_from"
        )
    return manifest


def read_weights_of(uri: str) -> dict[str, Tensor]:
    """The weights of a finished run or search, hash verified; where encoders have LoRA, with the updates added to the layers they belong to."""
    manifest = start_manifest(uri)
    verify_files(uri, manifest, prefix=WEIGHTS_FILE)
    weights = load(read_bytes(join_uri(uri, WEIGHTS_FILE)))
    for name, encoder in manifest["config"].get("model", {}).get("encoders", {}).items():
        if encoder.get("train") == "lora":
            weights = merge_lora(weights, f"encoders.{name}.", encoder["lora"]["alpha"] / encoder["lora"]["rank"])
    return weights


def _find_ancestor(data: PreparedData, identity: str, start_uri: str) -> PreparedData:
    """The prepared set of this fingerprint among those that `data` extends."""
    manifest = data.manifest
    while "base" in manifest["parents"]:
        uri, wanted = manifest["config"]["data"]["base"], manifest["parents"]["base"]
        manifest = read_manifest(uri, PREPARED_KIND)
        if manifest["fingerprint"] != wanted:
            break
        if wanted == identity:
            return PreparedData(uri, manifest)
    raise InputError(
        f"train.start_from='{start_uri}' was trained on prepared set '{identity}', this run reads '{data.identity}', which does not extend it",
        "a run over the same prepared set, or over one that it extends",
        f"prepare with data.base=PREPARED_ROOT/{identity}, or leave train.start_from out",
    )


def _fill_sharded_tables(weights: dict[str, Tensor], model: RecommenderModel, older: PreparedData | None, data: PreparedData) -> int:
    """Take the tables' weights out of `weights` and fill the rows of those that are known; returns how many tables were filled."""
    growth = {(count, count) for count in (data.num_items, data.num_users)}
    if older is not None:
        growth = {(older.num_items, data.num_items), (older.num_users, data.num_users)}
    num_filled = 0
    for name, table in model.named_modules():
        old = weights.pop(f"{name}.weight", None) if isinstance(table, ShardedTable) else None
        if old is not None and old.shape[1] == table.width and (len(old), table.owners.num_rows) in growth:
            table.load_rows(old)
            num_filled += 1
    return num_filled


def _meaning(encoder: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in encoder.items() if name not in TRAINING_FIELDS}


def _grown(weights: Mapping[str, Tensor], model: RecommenderModel, kept: set[str], older: PreparedData, data: PreparedData) -> dict[str, Tensor]:
    """Of the older run's weights those that mean the same here; its tables with as many rows as the new ones."""
    own, parameters = model.state_dict(), {name for name, _ in model.named_parameters()}
    rows_of_category = _category_rows(model, older, data)
    growth = {(older.num_items, data.num_items), (older.num_users, data.num_users)}
    taken = {}
    for name, old in weights.items():
        room, _, rest = name.partition(".")
        # Buffers outside of encoders are facts of the data: how often an item was taken, its neighbours, the mean rating.
        if name not in own or (rest.partition(".")[0] not in kept if room == "encoders" else name not in parameters):
            continue
        new = own[name]
        if name in rows_of_category:
            old_rows, new_rows = rows_of_category[name]
            taken[name] = new.index_copy(0, new_rows, old[old_rows])
        elif old.shape[1:] == new.shape[1:] and (len(old), len(new)) in growth:
            taken[name] = torch.cat([old, new[len(old) :]])
        else:
            taken[name] = old
    return taken


def _category_rows(model: RecommenderModel, older: PreparedData, data: PreparedData) -> dict[str, tuple[Tensor, Tensor]]:
    """Table of a user attribute → (rows there, rows here) of the values both know: a new value moves the numbers of those behind it."""
    rows = {}
    for module_name, module in model.named_modules():
        if isinstance(module, AttributesUser):
            for number, column in enumerate(module.names):
                before, now = _category_of_value(older, column), _category_of_value(data, column)
                known = [value for value in before if value in now]
                pairs = [torch.tensor([0, *(categories[value] for value in known)]) for categories in (before, now)]
                rows[f"{module_name}.embeddings.{number}.weight"] = (pairs[0], pairs[1])
    return rows


def _category_of_value(data: PreparedData, column: str) -> dict[Any, int]:
    """Value of a user attribute → its category, from 1; 0, the unknown value, is not among them."""
    categories, first_row = np.unique(data.user_categories(column), return_index=True)
    values = data.users[column].take(pa.array(first_row)).to_pylist()
    return {value: category for value, category in zip(values, categories.tolist(), strict=True) if category > 0}
