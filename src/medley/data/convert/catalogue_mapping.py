"""The mapping file of a catalogue: which file and which field each column of the tables comes from."""

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from medley import schema
from medley.manifest import read_bytes
from medley.schema import InputError

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
"""A field in a path pattern."""


def inside(path: str) -> str:
    """`path` when it stays inside the folder it is relative to; else ValueError."""
    if path.startswith("/") or ".." in path.split("/") or "://" in path or "\0" in path:
        raise ValueError(f"path {path!r} leaves the raw folder")
    return path


RelativePath = Annotated[str, Field(min_length=1), AfterValidator(inside)]
FieldName = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitField(_Strict):
    """A field that holds several tags in one string."""

    field: FieldName
    separator: str = Field(min_length=1)
    """What stands between two tags; spaces around a tag are dropped."""


class Constant(_Strict):
    """One value for every row."""

    constant: str = Field(min_length=1)


class FeatureFile(_Strict):
    """A file of precomputed item vectors, aligned to the items by id; what is no item's id is counted and left out, other items have null."""

    file: RelativePath
    """.npy of shape (vectors, width), float16, float32 or float64; or Parquet with the columns `item_id` and `vector`"""
    ids: RelativePath | None = None
    """Text file with the id of each vector of the .npy, one a line; null for Parquet."""

    @model_validator(mode="after")
    def _npy_has_ids(self) -> Self:
        if self.file.endswith(".npy") != (self.ids is not None):
            raise ValueError("a .npy file needs `ids`, a Parquet file must not have it")
        return self


class ItemsMapping(_Strict):
    """Where the columns of `items/` come from."""

    file: RelativePath
    """JSONL, CSV (comma) or TSV, also with .gz behind it; UTF-8; CSV and TSV with a header line."""
    id: FieldName
    """Field of the item id; numbers become strings."""
    title: FieldName | None = None
    text: FieldName | tuple[FieldName, ...] = ()
    """One field or several, joined by `text_separator`; empty ones are left out."""
    text_separator: str = "\n"
    tags: dict[str, FieldName | SplitField] = {}
    """Tag column: a field with a JSON list (in CSV: its text), or `{field: F, separator: "|"}`. A string without separator is one tag."""
    image: RelativePath | None = None
    """A path pattern with fields in braces (`images/{id}.png`), or the name of a field that holds a path; both relative to the raw folder."""
    audio: RelativePath | None = None
    """Like `image`."""
    attributes: dict[str, FieldName] = {}
    """Attribute column: field. A column is double when every value is a plain number (no leading zeros), else string."""

    features: dict[str, FeatureFile] = {}
    """Feature column: `{file: vectors.npy, ids: ids.txt}` or `{file: vectors.parquet}`."""

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        _check_columns(
            (*self.tags, *self.attributes, *self.features), (schema.ITEM_ID, schema.ITEM_INDEX, schema.TITLE, schema.TEXT, schema.IMAGE, schema.AUDIO)
        )
        return self

    def fields(self) -> dict[str, str]:
        """Key of the mapping -> field that it needs."""
        needed = {"id": self.id, **{f"attributes.{column}": field for column, field in self.attributes.items()}}
        needed |= {"title": self.title} if self.title else {}
        needed |= {f"text.{place}": field for place, field in enumerate(self.text_fields())}
        needed |= {f"tags.{column}": source if isinstance(source, str) else source.field for column, source in self.tags.items()}
        for modality, source in self.media().items():
            needed |= {f"{modality}.{place}": field for place, field in enumerate(PLACEHOLDER.findall(source) or [source])}
        return needed

    def text_fields(self) -> tuple[str, ...]:
        """The fields of the text."""
        return (self.text,) if isinstance(self.text, str) else self.text

    def media(self) -> dict[str, str]:
        """Modality -> path pattern or field, of the modalities that the catalogue has."""
        return {modality: source for modality, source in ((schema.IMAGE, self.image), (schema.AUDIO, self.audio)) if source}


class UsersMapping(_Strict):
    """Where the columns of `users/` come from."""

    file: RelativePath
    id: FieldName
    attributes: dict[str, FieldName] = {}
    """Attribute column: field."""

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        _check_columns(tuple(self.attributes), (schema.USER_ID, schema.USER_INDEX))
        return self

    def fields(self) -> dict[str, str]:
        """Key of the mapping -> field that it needs."""
        return {"id": self.id, **{f"attributes.{column}": field for column, field in self.attributes.items()}}


class InteractionsMapping(_Strict):
    """Where the columns of `interactions/` come from."""

    file: RelativePath
    user: FieldName
    item: FieldName
    timestamp: FieldName | None = None
    timestamp_format: str = Field(default="iso", min_length=1)
    """`iso`, `seconds` or `milliseconds` since 1970, or a strptime pattern such as `%Y-%m-%d-%H:%M:%S`. Times without a zone are UTC."""
    event: FieldName | Constant | None = None
    """A field, or `{constant: play}`."""
    value: FieldName | None = None
    dwell_seconds: FieldName | None = None
    split: FieldName | None = None
    """Field with train, valid or test, when the data set ships its own split."""

    def fields(self) -> dict[str, str]:
        """Key of the mapping -> field that it needs."""
        names = ("user", "item", "timestamp", "event", "value", "dwell_seconds", "split")
        return {name: field for name in names if isinstance(field := getattr(self, name), str)}


class CatalogueMapping(_Strict):
    """The whole mapping file."""

    items: ItemsMapping
    interactions: InteractionsMapping
    users: UsersMapping | None = None


def read_mapping(uri: str) -> CatalogueMapping:
    """The checked mapping file at `uri`; anything unknown or malformed in it is an InputError."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return CatalogueMapping.model_validate(YAML(typ="safe", pure=True).load(read_bytes(uri)))
    except YAMLError as error:
        raise InputError(f"mapping '{uri}' is not YAML ({' '.join(str(error).split())})", "a YAML mapping", "correct the line named") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the top level"
        tables: dict[str, type[BaseModel]] = {"items": ItemsMapping, "interactions": InteractionsMapping, "users": UsersMapping}
        known = list(tables.get(place.split(".")[0], CatalogueMapping).model_fields)
        hint = did_you_mean(str(first["loc"][-1]), known) if first["type"] == "extra_forbidden" else ""
        raise InputError(
            f"mapping '{uri}' at {place}: {first['msg'].removeprefix('Value error, ')}",
            f"a mapping with the keys {', '.join(known)}",
            f"correct the mapping{hint}; jobs/mappings has examples",
        ) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` when something known is spelled alike, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _check_columns(columns: tuple[str, ...], taken: tuple[str, ...]) -> None:
    """Tag and attribute columns must have names of their own."""
    for place, column in enumerate(columns):
        if column in taken or column in columns[:place]:
            raise ValueError(f"column '{column}' is named twice or is one of {', '.join(taken)}")
