"""The folder that serving needs: vectors, id maps, titles, popularity, seen items, the model; no pickle, verified before it is read.

config.json            the resolved Run
scorer.safetensors     user and item vectors and biases (index/scorer.py), of a blend those of all parts (index/blend.py)
items.parquet          item_index, item_id, title, train_count
users.parquet          user_index, user_id
seen.safetensors       offsets, items: what each user has already had (train, valid and test)
metrics.json           what evaluation measured
model/                 model.safetensors and assets/ENCODER/… (tokenizers, vocabularies), for items that arrive later; closed forms have none
manifest.json          hashes of all the others, fingerprints, versions
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load, save

from medley.data.item_lists import ItemLists
from medley.data.prepared import PreparedData
from medley.index.blend import Blend, read_scorer
from medley.index.scorer import Scorer
from medley.manifest import (
    exists,
    find_manifest,
    fingerprint,
    join_uri,
    read_bytes,
    read_json,
    read_manifest,
    read_parquet,
    staged_folder,
    verify_files,
    write_bytes,
    write_json,
    write_parquet,
)
from medley.schema import ITEM_ID, ITEM_INDEX, SPLITS, TITLE, USER_ID, USER_INDEX, InputError

BUNDLE_KIND = "bundle"


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory. items: item_index, item_id, title, train_count. users: user_index, user_id; both sorted by index."""

    scorer: Scorer | Blend
    items: pa.Table
    users: pa.Table
    seen: ItemLists
    metrics: Mapping[str, Any]
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]

    @property
    def version(self) -> str:
        """First 12 digits of the fingerprint; served answers carry it."""
        return str(self.manifest["fingerprint"])[:12]


def write_bundle(
    uri: str,
    *,
    scorer: Scorer | Blend,
    items: pa.Table,
    users: pa.Table,
    seen: ItemLists,
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
    model_files: Mapping[str, bytes],
    identity: str,
    parents: Mapping[str, str],
) -> dict[str, Any]:
    """Write a bundle, whole or not at all; returns its manifest. model_files: path below `model/` -> content."""
    with staged_folder(uri) as stage:
        scorer.save(stage.path("scorer.safetensors"))
        write_parquet(stage.path("items.parquet"), items)
        write_parquet(stage.path("users.parquet"), users)
        seen_tensors = {"offsets": torch.from_numpy(np.ascontiguousarray(seen.offsets)), "items": torch.from_numpy(np.ascontiguousarray(seen.items))}
        write_bytes(stage.path("seen.safetensors"), save(seen_tensors))
        write_json(stage.path("metrics.json"), metrics)
        write_json(stage.path("config.json"), config)
        for name, content in model_files.items():
            write_bytes(stage.path("model", name), content)
        counts = {"num_items": items.num_rows, "num_users": users.num_rows, "dimension": scorer.item_vectors_ND.shape[1]}
        return stage.commit(BUNDLE_KIND, identity, parents=parents, counts=counts, config=json.loads(json.dumps(config)))


def read_bundle(uri: str) -> Bundle:
    """Read a bundle after verifying every file's hash; a missing, foreign or changed one is an InputError."""
    manifest = read_manifest(uri, BUNDLE_KIND)
    verify_files(uri, manifest)
    seen = load(read_bytes(join_uri(uri, "seen.safetensors")))
    return Bundle(
        scorer=read_scorer(join_uri(uri, "scorer.safetensors")),
        items=read_parquet(join_uri(uri, "items.parquet")),
        users=read_parquet(join_uri(uri, "users.parquet")),
        seen=ItemLists(seen["offsets"].numpy(), seen["items"].numpy()),
        metrics=read_json(join_uri(uri, "metrics.json")),
        config=read_json(join_uri(uri, "config.json")),
        manifest=manifest,
    )


def bundle_run(run_uri: str, run_kind: str, data: PreparedData, bundle_root: str) -> dict[str, Any]:
    """Pack a finished, evaluated run as `bundle_root/VERSION/`, or find it complete. VERSION: 12 digits of run and metrics."""
    manifest = read_manifest(run_uri, run_kind)
    verify_files(run_uri, manifest)
    report_uri = join_uri(run_uri, "report", "metrics.json")
    if not exists(report_uri):
        raise InputError(f"run '{run_uri}' has no report/metrics.json", "an evaluated run", "run jobs.evaluate first")
    metrics = read_json(report_uri)
    identity = fingerprint(BUNDLE_KIND, manifest["fingerprint"], metrics)
    uri = join_uri(bundle_root, identity[:12])
    found = find_manifest(uri)
    if found is None:
        model_files = {name: read_bytes(join_uri(run_uri, name)) for name in manifest["files"] if name.startswith("assets/")}
        if "weights.safetensors" in manifest["files"]:
            model_files["model.safetensors"] = read_bytes(join_uri(run_uri, "weights.safetensors"))
        found = write_bundle(
            uri,
            scorer=read_scorer(join_uri(run_uri, "scorer.safetensors")),
            items=data.item_facts.select([ITEM_INDEX, ITEM_ID, TITLE, "train_count"]),
            users=data.users.select([USER_INDEX, USER_ID]),
            seen=data.item_lists(*SPLITS),
            metrics=metrics,
            config=manifest["config"],
            model_files=model_files,
            identity=identity,
            parents={"run": manifest["fingerprint"], "prepared": data.identity},
        )
    size_bytes = sum(entry["size_bytes"] for entry in found["files"].values())
    return {"bundle": uri, "fingerprint": identity, "size_bytes": size_bytes, **found["counts"]}
