"""The items' content as closed forms want it: one matrix of similarities from the columns of a prepared set."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from medley.data.prepared import PreparedData
from medley.heads.content import ContentConfig, tag_cosines, vector_cosines
from medley.schema import InputError


def check_content(content: Sequence[ContentConfig], data: PreparedData) -> None:
    """An InputError where a column is not there, is neither tags nor vectors, or an entry has both."""
    for place, entry in enumerate(content):
        for column in entry.columns:
            if column not in data.columns:
                raise InputError(
                    f"train.content[{place}] reads column '{column}', the prepared items have {', '.join(data.columns)}",
                    "tag or feature columns of the items table",
                    "correct train.content, or add the column to the tables",
                )
        types = data.item_store().take(np.zeros(1, dtype=np.int64), list(entry.columns)).schema
        kinds = {column: _kind(types.field(column).type) for column in entry.columns}
        if set(kinds.values()) not in ({"tags"}, {"vectors"}):
            found = ", ".join(f"'{column}': {types.field(column).type}" for column in entry.columns)
            raise InputError(
                f"train.content[{place}] reads {found}", "lists of strings, or lists of floats, in one entry", "put them into entries of their own"
            )


def _kind(type_: pa.DataType) -> str:
    value_type = getattr(type_, "value_type", pa.null())
    return "tags" if pa.types.is_string(value_type) else "vectors" if pa.types.is_floating(value_type) else "other"


def content_gram(content: Sequence[ContentConfig], data: PreparedData) -> Tensor | None:
    """Σ weight × cosines over the entries, (N, N) float32; None without entries."""
    total_NN = None
    for entry in content:
        # In place: each of these matrices may be a fifth of the memory.
        cosines_NN = _cosines(entry, data).mul_(entry.weight)
        total_NN = cosines_NN if total_NN is None else total_NN.add_(cosines_NN)
    return total_NN


def _cosines(entry: ContentConfig, data: PreparedData) -> Tensor:
    table = data.item_store().take(np.arange(data.num_items), list(entry.columns))
    if _kind(table.schema.field(entry.columns[0]).type) == "tags":
        columns = [table[column].to_pylist() for column in entry.columns]
        # The column is part of the tag: a person may direct one film and act in another.
        return tag_cosines(
            [[f"{name}:{tag}" for name, tags in zip(entry.columns, own, strict=True) for tag in tags or () if tag] for own in zip(*columns, strict=True)]
        )
    vectors, present = zip(*(_vectors(table[column]) for column in entry.columns), strict=True)
    is_warm_N = torch.from_numpy(data.train_count_N > 0)
    return vector_cosines(torch.cat(vectors, dim=1), torch.stack(present).all(dim=0), is_warm_N)


def _vectors(column: pa.ChunkedArray) -> tuple[Tensor, Tensor]:
    """(N, D) float32 with zeros for nulls, and which rows have one."""
    present = ~column.is_null().to_numpy()
    found = np.array(column.drop_null().to_pylist(), dtype=np.float32)
    vectors_ND = np.zeros((len(present), found.shape[1] if found.ndim == 2 else 1), dtype=np.float32)
    vectors_ND[present] = found.reshape(-1, vectors_ND.shape[1])
    return torch.from_numpy(vectors_ND), torch.from_numpy(present)
