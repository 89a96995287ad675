"""A few items of a prepared set as a person would look at them: title, text, picture, sound."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medley.data.prepared import PreparedData
from medley.data.report_prepared import pieces_of
from medley.media import decode_flac
from medley.schema import AUDIO, IMAGE, ITEM_ID, ITEM_INDEX, TEXT, TITLE

NUM_SAMPLES = 12
SEED = 0
"""the same set always shows the same items"""
MAX_SIDE_PIXELS, MAX_TEXT_CHARACTERS, NUM_WAVE_POINTS = 200, 200, 100


@dataclass(frozen=True)
class Sample:
    """One item."""

    item_id: str
    title: str
    num_train: int
    """train interactions"""
    text: str | None
    tags: dict[str, list[str]]
    """tag column → its first tags"""
    picture: bytes | None
    """JPEG, longer side MAX_SIDE_PIXELS at most"""
    wave: np.ndarray | None
    """(NUM_WAVE_POINTS, 2) smallest and largest sample of equal parts of the sound"""
    seconds: float | None


def draw_samples(data: PreparedData, num_samples: int = NUM_SAMPLES) -> list[Sample]:
    """One item at random of each of `num_samples` equal parts of the catalogue, so that a sorted one shows all its ends; only their shards are read."""
    starts = np.linspace(0, data.num_items, min(num_samples, data.num_items) + 1).astype(np.int64)
    indices = np.random.default_rng(SEED).integers(starts[:-1], starts[1:])
    if not any(name.startswith("items/") for name in data.manifest["files"]):
        return []
    facts, attributes = _facts(data, indices)
    names = [name for name in data.columns if name not in attributes]
    store = data.item_store()
    # One item at a time: a piece of sound may be long.
    rows = (store.take(np.array([index]), names).to_pylist()[0] for index in indices.tolist())
    return [_sample(fact, row) for fact, row in zip(facts, rows, strict=True)]


def _facts(data: PreparedData, indices: np.ndarray) -> tuple[list[dict[str, Any]], list[str]]:
    """(the facts of these items in order, the names of all attributes)."""
    wanted, found, attributes = pa.array(indices, pa.int32()), [], []
    for piece in pieces_of(data, "item_facts", None):
        found += piece.select([ITEM_INDEX, ITEM_ID, TITLE, "train_count"]).filter(pc.is_in(piece[ITEM_INDEX], value_set=wanted)).to_pylist()
        attributes = piece.schema.names
    return found, attributes


def _sample(fact: dict[str, Any], row: dict[str, Any]) -> Sample:
    wave, seconds = _wave(row[AUDIO]) if row.get(AUDIO) else (None, None)
    return Sample(
        item_id=fact[ITEM_ID],
        title=fact[TITLE] or "",
        num_train=fact["train_count"],
        text=_shortened(row[TEXT]) if row.get(TEXT) else None,
        tags={name: value[:6] for name, value in row.items() if isinstance(value, list) and value and isinstance(value[0], str)},
        picture=_thumbnail(row[IMAGE]) if row.get(IMAGE) else None,
        wave=wave,
        seconds=seconds,
    )


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARACTERS else text[: MAX_TEXT_CHARACTERS - 1] + "…"


def _thumbnail(jpeg: bytes) -> bytes:
    from PIL import Image

    image = Image.open(io.BytesIO(jpeg), formats=["JPEG"])
    if max(image.size) <= MAX_SIDE_PIXELS:
        return jpeg
    image.thumbnail((MAX_SIDE_PIXELS, MAX_SIDE_PIXELS))
    small = io.BytesIO()
    image.save(small, "JPEG", quality=80)
    return small.getvalue()


def _wave(flac: bytes) -> tuple[np.ndarray, float]:
    """(envelope, seconds)."""
    import soundfile

    samples_S = decode_flac(flac).numpy()
    pieces = np.array_split(samples_S, min(NUM_WAVE_POINTS, len(samples_S)))
    return np.array([(piece.min(), piece.max()) for piece in pieces]), soundfile.info(io.BytesIO(flac)).duration
