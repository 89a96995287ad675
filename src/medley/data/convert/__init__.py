"""Raw data sets → item, interaction and user tables: one file per raw form.

A converter has a configuration and `write_tables(config, stage)`, which returns counts. To add one: write the file, add it to both below.
"""

import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field

from medley.data.convert import amazon_reviews, catalogue, microlens, movielens, synthetic
from medley.data.convert.amazon_reviews import AmazonReviewsConfig
from medley.data.convert.catalogue import CatalogueConfig
from medley.data.convert.microlens import MicroLensConfig
from medley.data.convert.movielens import MovieLensConfig
from medley.data.convert.synthetic import SyntheticConfig
from medley.data.tables import TABLES_KIND
from medley.manifest import StagedFolder, find_manifest, fingerprint, staged_folder
from medley.schema import InputError

ConvertConfig = Annotated[CatalogueConfig | MovieLensConfig | AmazonReviewsConfig | MicroLensConfig | SyntheticConfig, Field(discriminator="kind")]

CONVERTERS: Mapping[str, tuple[type[BaseModel], Callable[[Any, StagedFolder], dict[str, int]]]] = {
    "catalogue": (CatalogueConfig, catalogue.write_tables),
    "movielens": (MovieLensConfig, movielens.write_tables),
    "amazon_reviews": (AmazonReviewsConfig, amazon_reviews.write_tables),
    "microlens": (MicroLensConfig, microlens.write_tables),
    "synthetic": (SyntheticConfig, synthetic.write_tables),
}


def convert(config: ConvertConfig, out_uri: str) -> dict[str, Any]:
    """Write a tables folder, or find the same one complete; another one at the same place is refused. Returns its uri and counts."""
    started = time.monotonic()
    identity = fingerprint(TABLES_KIND, config.model_dump(mode="json"))
    manifest = find_manifest(out_uri)
    if manifest is not None and manifest["fingerprint"] != identity:
        raise InputError(
            f"'{out_uri}' holds tables of other settings ({manifest['config'].get('kind')})", "a new folder, or the same settings", "name another output folder"
        )
    is_reused = manifest is not None
    if manifest is None:
        _, write_tables = CONVERTERS[config.kind]
        with staged_folder(out_uri) as stage:
            counts = write_tables(config, stage)
            manifest = stage.commit(TABLES_KIND, identity, parents={}, counts=counts, config=config.model_dump(mode="json"))
    return {"tables": out_uri, "fingerprint": identity, "reused": is_reused, "seconds": round(time.monotonic() - started, 1), **manifest["counts"]}
