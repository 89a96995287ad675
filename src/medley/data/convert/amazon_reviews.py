"""Amazon Reviews 2023 (Hou et al. 2024) → tables: one category's reviews and product metadata, as JSONL, also with .gz behind it.

An item is a product family (`parent_asin`); its text is title, features and description. A rating is the interaction's value.
"""

import posixpath
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from medley.data.convert.catalogue_mapping import CatalogueMapping, FeatureFile, InteractionsMapping, ItemsMapping, RelativePath
from medley.data.convert.field_values import NUMBER
from medley.data.convert.mapped_tables import RawFolder, write_mapped_tables
from medley.data.convert.media_files import names_by_stem
from medley.data.convert.row_files import Rows, read_rows
from medley.manifest import StagedFolder, join_uri, list_folder
from medley.schema import InputError

_IMAGE_FIELD = "image_path"
"""The field that holds the path of an item's picture once its file is found."""


class AmazonReviewsConfig(BaseModel):
    """A folder with one category."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["amazon_reviews"] = "amazon_reviews"
    raw: str
    """Folder (path or URI) with `meta_CATEGORY.jsonl` and `CATEGORY.jsonl`, also with .gz behind them."""
    meta: RelativePath | None = None
    """Metadata file in `raw`; null: the only one whose name begins with meta_."""
    reviews: RelativePath | None = None
    """Reviews file in `raw`; null: the one named like the metadata file, without meta_."""
    images: RelativePath | None = None
    """Folder in `raw` with pictures named PARENT_ASIN.jpg (.png, .webp) or like the files of the metadata's image addresses; null: no pictures."""
    features: dict[str, FeatureFile] = {}
    """Feature column -> file of precomputed vectors by parent_asin, in `raw`."""


def write_tables(config: AmazonReviewsConfig, stage: StagedFolder) -> dict[str, int]:
    """Write items (title, text, categories, price, store, image) and interactions (value, timestamp); returns counts.

    A missing file and a broken line are InputErrors. A price that is no number and an absent picture are null; reviews of products
    without metadata are left out and reported.
    """
    meta, reviews = _find_files(config)
    mapping = CatalogueMapping(
        items=ItemsMapping(
            file=meta,
            id="parent_asin",
            title="title",
            text=("title", "features", "description"),
            tags={"categories": "categories"},
            image=_IMAGE_FIELD if config.images else None,
            attributes={"price": "price", "store": "store"},
            features=config.features,
        ),
        interactions=InteractionsMapping(
            file=reviews, user="user_id", item="parent_asin", value="rating", timestamp="timestamp", timestamp_format="milliseconds"
        ),
    )
    pictures = names_by_stem(join_uri(config.raw, config.images)) if config.images else {}
    if config.images and not pictures:
        raise InputError(f"folder '{config.images}' in '{config.raw}' has no file", "pictures named by parent_asin or image address", "correct images")

    def read(raw: str, file: str, table: str, fields: Mapping[str, str]) -> Rows:
        rows = read_rows(raw, file, table, {key: field for key, field in fields.items() if field != _IMAGE_FIELD})
        return _products(rows, config.images or "", pictures) if table == "items" else rows

    return write_mapped_tables(RawFolder(config.raw, read, refuses_bad_rows=True), mapping, stage)


def _find_files(config: AmazonReviewsConfig) -> tuple[str, str]:
    found = list_folder(config.raw)
    metas = [config.meta] if config.meta else [name for name in found if name.startswith("meta_") and name.removesuffix(".gz").endswith(".jsonl")]
    if len(metas) != 1:
        got = f"has {len(metas)} files meta_….jsonl ({', '.join(metas[:5])})" if metas else f"has no file meta_….jsonl (found: {', '.join(found[:20])})"
        raise InputError(f"'{config.raw}' {got}", "the metadata of one category", "name the files by meta and reviews, or correct raw")
    if config.reviews:
        return metas[0], config.reviews
    stem = posixpath.basename(metas[0]).removeprefix("meta_").removesuffix(".gz")
    reviews = next((name for name in (stem, f"{stem}.gz") if name in found), None)
    if reviews is None:
        raise InputError(f"file '{stem}' does not exist in '{config.raw}'", f"the reviews of '{metas[0]}', also with .gz", "copy it there, or set reviews")
    return metas[0], reviews


def _products(rows: Rows, folder: str, pictures: Mapping[str, str]) -> Rows:
    """Products with a price that is a number or null, and the path of their picture."""
    for line_number, row in rows:
        if isinstance(row, dict):
            price = row.get("price")
            is_number = not isinstance(price, bool) and NUMBER.fullmatch(str(price).strip())
            picture = _picture(row, pictures)
            row = row | {"price": str(price).strip() if is_number else None, _IMAGE_FIELD: picture and posixpath.join(folder, picture)}
        yield line_number, row


def _picture(row: Mapping[str, Any], pictures: Mapping[str, str]) -> str | None:
    """The file named by the product's id, else by its first image address that has a file, the main picture's largest first."""
    if (name := pictures.get(str(row.get("parent_asin")))) is not None:
        return name
    images = [image for image in row.get("images") or () if isinstance(image, dict)]
    for image in sorted(images, key=lambda image: image.get("variant") != "MAIN"):
        for size in ("hi_res", "large", "thumb"):
            stem = posixpath.splitext(posixpath.basename(str(image.get(size) or "")))[0]
            if stem in pictures:
                return pictures[stem]
    return None
