"""A folder of items, media and interactions to tables, by a mapping file: one converter for every catalogue that needs no code of its own.

The mapping (catalogue_mapping.py; examples in jobs/mappings) says which file and which field each column comes from.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from medley.data.convert.catalogue_mapping import read_mapping
from medley.data.convert.mapped_tables import RawFolder, write_mapped_tables
from medley.manifest import StagedFolder


class CatalogueConfig(BaseModel):
    """A raw folder and the mapping file that describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["catalogue"] = "catalogue"
    raw: str
    """Folder (path or URI) with the items file, the interactions file and the media."""
    mapping: str
    """Path or URI of the mapping YAML."""


def write_tables(config: CatalogueConfig, stage: StagedFolder) -> dict[str, int]:
    """Write the tables that the mapping describes (see `write_mapped_tables`); bad rows go to quarantine. Returns counts of rows."""
    return write_mapped_tables(RawFolder(config.raw), read_mapping(config.mapping), stage)
