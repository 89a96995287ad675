"""A finished run measured on its splits, beside popularity and, where the data know it, the oracle."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from safetensors.torch import load

from medley.data.prepared import PreparedData
from medley.index.scorer import Scorer
from medley.manifest import exists, join_uri, read_bytes, read_manifest, read_parquet, verify_files, write_json
from medley.schema import ITEM_ID, USER_ID, InputError
from medley.training.evaluate import EvaluateConfig, Questions, format_table, group_masks, make_questions, rank_block, rating_errors, summarise

logger = logging.getLogger(__name__)

Results = dict[str, dict[str, dict[str, Any]]]
"""scorer → group (all, warm, cold) → metric → value"""


def evaluate_run(run_uri: str, run_kind: str, data: PreparedData, tables_uri: str, config: EvaluateConfig) -> dict[str, Results]:
    """Rank every split for the run and its baselines, write `report/metrics.json` beside the run; needs a Ray session.

    Returns split → scorer → group → metric. A run of another prepared set is an InputError.
    """
    manifest = read_manifest(run_uri, run_kind)
    if manifest["parents"]["prepared"] != data.identity:
        raise InputError(
            f"run '{run_uri}' was trained on prepared set {manifest['parents']['prepared']}",
            f"the set {data.identity}",
            "evaluate it with its own configuration",
        )
    verify_files(run_uri, manifest, prefix="scorer")
    scorers = {"model": Scorer.load(join_uri(run_uri, "scorer.safetensors")), "popularity": popularity_scorer(data)}
    oracle = oracle_scorer(tables_uri, data)
    if oracle is not None:
        scorers["oracle"] = oracle
    results: dict[str, Results] = {split: measure(scorers, data, split, config) for split in config.splits}
    write_json(join_uri(run_uri, "report", "metrics.json"), results)
    for split, by_scorer in results.items():
        logger.info("%s\n%s", split, format_table(by_scorer, f"ndcg@{config.ks[len(config.ks) // 2]}"))
    return results


def measure(scorers: Mapping[str, Scorer], data: PreparedData, split: str, config: EvaluateConfig) -> Results:
    """Every scorer's metrics on one split, ranked in Ray tasks, one per scorer and block of users."""
    questions = make_questions(data, split, config)
    masks = group_masks(data.train_count_N)
    part = data.interactions(split)
    task = ray.remote(num_cpus=1, max_retries=3)(_rank_groups)
    questions_ref, masks_ref = ray.put(questions), ray.put(masks)
    pending: dict[str, list[Any]] = {}
    for name, scorer in scorers.items():
        scorer_ref = ray.put(scorer)
        pending[name] = [task.remote(scorer_ref, questions_ref, block, masks_ref, config) for block in range(questions.num_blocks)]
    results: Results = {}
    for name, references in pending.items():
        blocks = ray.get(references)
        results[name] = {group: summarise([block[group] for block in blocks]) for group in masks}
        if name == "model":
            results[name]["all"] |= rating_errors(scorers[name], part.users, part.items, part.values)
    return results


def _rank_groups(scorer: Scorer, questions: Questions, block: int, masks: dict[str, torch.Tensor], config: EvaluateConfig) -> dict[str, dict[str, np.ndarray]]:
    return {group: rank_block(scorer, questions, block, mask_N, config.ks, config) for group, mask_N in masks.items()}


def popularity_scorer(data: PreparedData) -> Scorer:
    """Every user gets the items in the order of their train counts."""
    return Scorer.of_items(torch.from_numpy(data.train_count_N), data.num_users)


def oracle_scorer(tables_uri: str, data: PreparedData) -> Scorer | None:
    """The true scores of synthetic data, in this prepared set's order; None for data that do not come with them."""
    truth_uri = join_uri(tables_uri, "truth")
    if not exists(truth_uri):
        return None
    tensors = load(read_bytes(join_uri(truth_uri, "scorer.safetensors")))
    items = _places(read_parquet(join_uri(truth_uri, "items.parquet"))[ITEM_ID], data.item_facts[ITEM_ID])
    users = _places(read_parquet(join_uri(truth_uri, "users.parquet"))[USER_ID], data.users[USER_ID])
    return Scorer(
        tensors["user_vectors_VD"][users].float(),
        tensors["item_vectors_ND"][items].float(),
        tensors["user_bias_V"][users].float(),
        tensors["item_bias_N"][items].float(),
        tensors["global_bias"].float(),
    )


def _places(known: pa.ChunkedArray, wanted: pa.ChunkedArray) -> torch.Tensor:
    places = pc.index_in(wanted, value_set=known.combine_chunks())
    assert places.null_count == 0
    return torch.from_numpy(places.to_numpy().astype(np.int64))
