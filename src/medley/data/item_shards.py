"""The items' shards: cleaned by Ray tasks into a work folder that outlives an interruption, moved into the prepared set when all are there."""

import logging
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from medley.data.clean import clean_shard
from medley.data.shards import ITEMS_PER_SHARD
from medley.data.tables import Tables
from medley.manifest import StagedFolder, exists, hash_file, join_uri, open_storage, read_json, write_json
from medley.media import MediaConfig
from medley.schema import InputError

logger = logging.getLogger(__name__)


def write_item_shards(tables: Tables, media: MediaConfig, item_rows: list[tuple[str, int, int]], work_uri: str, stage: StagedFolder) -> list[dict[str, Any]]:
    """`items/part-00000.arrow` … in the staged folder, and each shard's report (small: coverage, quarantine rows).

    item_rows: as in clean_shard. One Ray task per shard; those that an interrupted run left in `work_uri` are kept.
    """
    task = ray.remote(num_cpus=1, max_retries=3)(clean_shard_once)
    tables_ref = ray.put(tables)
    groups = [item_rows[first : first + ITEMS_PER_SHARD] for first in range(0, len(item_rows), ITEMS_PER_SHARD)]
    names = [f"part-{number:05d}.arrow" for number in range(len(groups))]
    pending = [task.remote(tables_ref, media, group, join_uri(work_uri, name)) for group, name in zip(groups, names, strict=True)]
    reports = []
    for number, reference in enumerate(pending, start=1):
        try:
            reports.append(ray.get(reference))
        except RayTaskError as error:
            # Ray's own error shows the task's traceback; a mistake in the tables needs only its message.
            raise (error.cause if isinstance(error.cause, InputError) else error) from None
        if number % 20 == 0 or number == len(pending):
            logger.info("prepare | %d of %d item shards", number, len(pending))
    filesystem, target = open_storage(stage.path("items"))
    filesystem.create_dir(target, recursive=True)
    for name in names:
        filesystem.move(open_storage(join_uri(work_uri, name))[1], f"{target}/{name}")
    return reports


def clean_shard_once(tables: Tables, media: MediaConfig, item_rows: Sequence[tuple[str, int, int]], uri: str) -> dict[str, Any]:
    """clean_shard (a Ray task), unless the shard stands at `uri` and is as the report beside it says, which is written last."""
    filesystem, path = open_storage(uri)
    report_uri = f"{uri}.json"
    if exists(uri) and exists(report_uri):
        report: dict[str, Any] = read_json(report_uri)
        if report["file"] == hash_file(filesystem, path):
            return report
    report = clean_shard(tables, media, item_rows, uri)
    report["file"] = hash_file(filesystem, path)
    write_json(report_uri, report)
    return report
