"""Batch scoring: the top-K of many users, computed by Ray Data over the cluster with the same code that serves requests."""

import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from medley.bundle import BUNDLE_KIND
from medley.manifest import exists, fingerprint, join_uri, open_storage, read_manifest, read_parquet, staged_folder
from medley.schema import USER_ID, InputError
from medley.serving.recommender import Query, Recommender, check_k

SCORES_KIND = "scores"
USERS_PER_BATCH = 1024

SCORES_SCHEMA = pa.schema(
    [
        pa.field(USER_ID, pa.string()),
        pa.field("source", pa.string()),
        pa.field("item_ids", pa.list_(pa.string())),
        pa.field("scores", pa.list_(pa.float32())),
    ]
)
"""One row per user, items best first; `source` says how they were found (personal, popular), as in the HTTP answer."""


class ScoreUsers:
    """Loads the bundle once per process, then answers blocks of users."""

    def __init__(self, bundle_uri: str, k: int):
        self.recommender = Recommender.load(bundle_uri)
        self.k = k

    def __call__(self, block: pa.Table) -> pa.Table:
        """user_id → SCORES_SCHEMA."""
        users = block[USER_ID].to_pylist()
        answers = self.recommender.recommend_many([Query(user_id=user, k=self.k) for user in users])
        rows = [
            {USER_ID: user, "source": answer.source, "item_ids": [item.item_id for item in answer.items], "scores": [item.score for item in answer.items]}
            for user, answer in zip(users, answers, strict=True)
        ]
        return pa.Table.from_pylist(rows, SCORES_SCHEMA)


def score_users(bundle_uri: str, scores_root: str, k: int, users_uri: str | None, num_processes: int) -> dict[str, Any]:
    """Write the top-k of every user of the bundle (or of a Parquet with a user_id column) below `scores_root`; needs a Ray session."""
    started = time.monotonic()
    check_k(k)
    if num_processes < 1:
        raise InputError(f"{num_processes} processes", "at least 1", "ask for more with --processes")
    manifest = read_manifest(bundle_uri, BUNDLE_KIND)
    users = read_parquet(users_uri or join_uri(bundle_uri, "users.parquet"))
    if USER_ID not in users.column_names or users[USER_ID].type != pa.string():
        raise InputError(f"'{users_uri}' has columns {', '.join(map(str, users.schema))}", f"a column '{USER_ID}' (string)", "rename or cast it")
    if users.num_rows == 0:
        raise InputError(f"'{users_uri or bundle_uri}' has no rows", "at least one user", "name another file")
    users = users.select([USER_ID]).combine_chunks()
    if num_null := users[USER_ID].null_count:
        first_row = pc.index(pc.is_null(users[USER_ID]), True).as_py()
        raise InputError(
            f"'{users_uri or bundle_uri}' has {num_null} rows without a {USER_ID}, the first is row {first_row} (counted from 0)",
            "an id in every row",
            "fill them or leave these rows out",
        )
    identity = fingerprint(SCORES_KIND, manifest["fingerprint"], k, users[USER_ID].to_pylist() if users_uri else None)
    uri = join_uri(scores_root, identity)
    if not exists(join_uri(uri, "manifest.json")):
        blocks = [users.slice(start, USERS_PER_BATCH) for start in range(0, users.num_rows, USERS_PER_BATCH)]
        with staged_folder(uri) as stage:
            scored = ray.data.from_blocks(blocks).map_batches(
                ScoreUsers,
                batch_size=None,
                batch_format="pyarrow",
                fn_constructor_args=(bundle_uri, k),
                compute=ray.data.ActorPoolStrategy(size=min(num_processes, len(blocks))),
                num_cpus=1,
            )
            filesystem, path = open_storage(stage.path("part"))
            scored.write_parquet(path, filesystem=filesystem)
            stage.commit(SCORES_KIND, identity, parents={"bundle": manifest["fingerprint"]}, counts={"num_users": users.num_rows, "k": k}, config={})
    counts = read_manifest(uri, SCORES_KIND)["counts"]
    return {"scores": uri, "fingerprint": identity, "seconds": round(time.monotonic() - started, 1), **counts}
