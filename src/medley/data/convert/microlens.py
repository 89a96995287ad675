"""MicroLens (Ni et al. 2023) → tables: who took which micro-video, with titles, covers and sounds.

    MicroLens-50k_pairs.csv   user,item,timestamp (ms); or only MicroLens-50k_pairs.tsv: user, tab, items in the order they were taken
    MicroLens-50k_titles.csv  item,title      MicroLens-50k_covers/ITEM.jpg      MicroLens-50k_audios/ITEM.wav (.flac, .ogg, .mp3)
Any other name before the underscore does as well. Comments are not read: the published pairs are made from them.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from medley import schema
from medley.data.convert.catalogue_mapping import CatalogueMapping, FeatureFile, InteractionsMapping, ItemsMapping
from medley.data.convert.mapped_tables import RawFolder, write_mapped_tables
from medley.data.convert.media_files import names_by_stem
from medley.data.convert.row_files import Rows, open_lines, read_rows
from medley.manifest import StagedFolder, join_uri, list_folder
from medley.schema import InputError

_TITLES = "_titles.csv"
_FOLDERS = {schema.IMAGE: "_covers", schema.AUDIO: "_audios"}


class MicroLensConfig(BaseModel):
    """A MicroLens folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["microlens"] = "microlens"
    raw: str
    """Folder (path or URI) with the published files, archives of covers and audios unpacked; a folder that is not there gives no column."""
    features: dict[str, FeatureFile] = {}
    """Feature column -> file of precomputed vectors by video id, in `raw`."""


def write_tables(config: MicroLensConfig, stage: StagedFolder) -> dict[str, int]:
    """Write items (title, text, image, audio) and interactions (with timestamp where pairs.csv is there); returns counts.

    A missing file and a broken line are InputErrors; a video without cover or sound has null.
    """
    found = list_folder(config.raw)
    prefix = _find_prefix(config.raw, found)
    folders = {modality: prefix + ending for modality, ending in _FOLDERS.items() if prefix + ending in found}
    names = {modality: names_by_stem(join_uri(config.raw, folder)) for modality, folder in folders.items()}
    pairs = next((name for name in (f"{prefix}_pairs.csv", f"{prefix}_pairs.tsv") if name in found), None)
    if pairs is None:
        raise InputError(f"neither '{prefix}_pairs.csv' nor '{prefix}_pairs.tsv' is in '{config.raw}'", "one of them", "copy the data set again, whole")
    has_times = pairs.endswith(".csv")
    mapping = CatalogueMapping(
        items=ItemsMapping(
            file=f"{prefix}{_TITLES}",
            id="item",
            title="title",
            text="title",
            image="image" if schema.IMAGE in folders else None,
            audio="audio" if schema.AUDIO in folders else None,
            features=config.features,
        ),
        interactions=InteractionsMapping(file=pairs, user="user", item="item", timestamp="timestamp" if has_times else None, timestamp_format="milliseconds"),
    )

    def read(raw: str, file: str, table: str, fields: Mapping[str, str]) -> Rows:
        if table == "interactions" and not has_times:
            return _pairs(raw, file)
        rows = read_rows(raw, file, table, {key: field for key, field in fields.items() if field not in folders})
        return _with_media(rows, folders, names) if table == "items" else rows

    return write_mapped_tables(RawFolder(config.raw, read, refuses_bad_rows=True), mapping, stage)


def _find_prefix(raw: str, found: list[str]) -> str:
    """What stands before `_titles.csv`."""
    prefixes = [name.removesuffix(_TITLES) for name in found if name.endswith(_TITLES)]
    if len(prefixes) != 1:
        got = f"has {len(prefixes)} files …{_TITLES}" if prefixes else f"has no file …{_TITLES} (found: {', '.join(found[:20]) or 'nothing'})"
        raise InputError(f"'{raw}' {got}", "one, such as MicroLens-50k_titles.csv", "point raw to the folder of one MicroLens data set")
    return prefixes[0]


def _with_media(rows: Rows, folders: Mapping[str, str], names: Mapping[str, Mapping[str, str]]) -> Rows:
    """Videos with the paths of their cover and sound, None where there is no file."""
    for line_number, row in rows:
        if isinstance(row, dict):
            paths = {modality: names[modality].get(row["item"]) for modality in folders}
            row = row | {modality: path and f"{folders[modality]}/{path}" for modality, path in paths.items()}
        yield line_number, row


def _pairs(raw: str, file: str) -> Rows:
    """One row for each item of each line."""
    with open_lines(raw, file) as lines:
        for line_number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            # Ids are numbers; other bytes, whatever letters they are shown as, are no video's id.
            user, tab, items = line.decode("latin-1").strip().partition("\t")
            if not tab:
                yield line_number, "line has no tab between the user and the items"
                continue
            for item in items.split():
                yield line_number, {"user": user, "item": item}
