"""The words all rooms share: column names, Arrow schemas, the micro-batch, the error a user sees, the letters of dimensions.

Dimension letters (a tensor's name ends in them):
    B rows (interactions) of a micro-batch      U unique items of a micro-batch     P items of U that have one modality
    L history length                            N items of the catalogue            V users
    K top results                               M modalities                        D vector width
    T text tokens or tags                       C H W image channels, rows, columns S audio samples        F mel bins
Masks end in `_mask` plus letters; `True` means real, not padding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import pyarrow as pa
import torch
from torch import Tensor

ITEM_ID = "item_id"
USER_ID = "user_id"
ITEM_INDEX = "item_index"
USER_INDEX = "user_index"
TIMESTAMP = "timestamp"
EVENT = "event"
VALUE = "value"
WEIGHT = "weight"
DWELL_SECONDS = "dwell_seconds"
SPLIT = "split"
TEXT = "text"
IMAGE = "image"
AUDIO = "audio"
TITLE = "title"

SPLITS = ("train", "valid", "test")

INTERACTIONS_SCHEMA = pa.schema(
    [
        pa.field(USER_ID, pa.string(), nullable=False),
        pa.field(ITEM_ID, pa.string(), nullable=False),
        pa.field(TIMESTAMP, pa.timestamp("us", tz="UTC")),
        pa.field(EVENT, pa.string()),
        pa.field(VALUE, pa.float32()),
        pa.field(DWELL_SECONDS, pa.float32()),
        pa.field(SPLIT, pa.string()),
    ]
)
"""The columns an `interactions/` table may have; only the two ids are required."""

PREPARED_INTERACTIONS_SCHEMA = pa.schema(
    [
        pa.field(USER_INDEX, pa.int32(), nullable=False),
        pa.field(ITEM_INDEX, pa.int32(), nullable=False),
        pa.field(TIMESTAMP, pa.timestamp("us", tz="UTC")),
        pa.field(VALUE, pa.float32()),
        pa.field(WEIGHT, pa.float32(), nullable=False),
        pa.field("is_target", pa.bool_(), nullable=False),
    ]
)

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("table", pa.string()),
        pa.field("id", pa.string()),
        pa.field("column", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("num_rows", pa.int64()),
        pa.field("shard", pa.string()),
        pa.field("row", pa.int64()),
    ]
)
"""What was left out, or counted as missing. shard, row: where it stands in the tables, row from 0; null in a line that counts several rows."""


class InputError(ValueError):
    """A mistake of the user's: says what we got and where, what we expected, and what to do next.

    Entry points turn it into exit code 2 without a traceback; it survives pickling between processes.
    """

    def __init__(self, got: str, expected: str, remedy: str):
        super().__init__(got, expected, remedy)
        self.got, self.expected, self.remedy = got, expected, remedy

    def __str__(self) -> str:
        return f"{self.got}; expected {self.expected}; {self.remedy}"


@dataclass(frozen=True)
class Pool:
    """The items that one micro-batch of each rank was drawn with, together: the negatives of all their rows (data/pool.py).

    W items, sorted, each once; S places of what each rank sends, as many for every rank. item_index_W, item_position_B: int64;
    known_positive_mask_BW as in Batch.
    """

    num_ranks: int
    sent_position_S: Tensor
    """int64, places among U of the items that this rank sends, and zeros behind them"""
    received_position_W: Tensor
    """int64, where each of the W items stands among what the ranks send, one after the other"""
    item_index_W: Tensor
    item_position_B: Tensor
    known_positive_mask_BW: Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-batch: B interactions, the U unique items they and the histories name, each prepared once.

    user_index_B: int64. item_position_B: int64, place of the row's item among U. row_weight_B: float32, 0 for padding rows.
    value_B: float32, the rating or strength (NaN where the data have none). item_index_U: int64.
    inputs: modality -> input name -> tensor over the P items that have it, or over one dummy row when none has.
    present_mask_U: modality -> bool. known_positive_mask_BU: the user has this item in train (the row's own item included).
    history_position_BL: int64, places among U; history_mask_BL: bool. `place` says where in the plan this micro-batch stands.
    """

    place: tuple[int, int, int]
    """(epoch, global batch, micro-batch)"""
    user_index_B: Tensor
    item_position_B: Tensor
    row_weight_B: Tensor
    value_B: Tensor
    item_index_U: Tensor
    inputs: Mapping[str, Mapping[str, Tensor]]
    present_mask_U: Mapping[str, Tensor]
    known_positive_mask_BU: Tensor
    history_position_BL: Tensor
    history_mask_BL: Tensor
    attributes_B: Mapping[str, Tensor] = field(default_factory=dict)
    """user attribute column -> int64 category, 0 for unknown"""
    uniform_negative_mask_U: Tensor | None = None
    """bool, the items that the plan drew uniformly as negatives of the whole global batch; None where the loss wants none"""
    pool: Pool | None = None
    """None: a micro-batch's own items are all there is"""

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory, from which a GPU copies while it computes."""
        return self._each(Tensor.pin_memory)

    def _each(self, function: Callable[[Tensor], Tensor]) -> Self:
        def apply(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, Mapping):
                return {key: apply(entry) for key, entry in value.items()}
            if isinstance(value, Pool):
                return replace(value, **{f.name: apply(getattr(value, f.name)) for f in fields(value)})
            return value

        return replace(self, **{f.name: apply(getattr(self, f.name)) for f in fields(self)})
