"""A finished run measured on its splits, beside its baselines and, where asked, beside another run of the same data.

runs/NAME/report/metrics.json       split → scorer → item group → metric → mean: what a bundle carries
runs/NAME/report/evaluation.json    the same with intervals, comparisons, slices, fairness, beyond accuracy (measures.py), and what was read
runs/NAME/report/report.html        all of it as one page (run_page.py)
runs/NAME/report/model_card.md      the short form (model_card.py)
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from medley.data.memory import CatalogueVectors
from medley.data.prepared import PreparedData
from medley.index.blend import Blend, read_scorer
from medley.index.scorer import Scorer
from medley.manifest import exists, join_uri, read_json, read_manifest, verify_files, write_bytes, write_json
from medley.schema import InputError
from medley.training.baselines import ContentKnn, oracle_scorer, popularity_scorer, unit_vectors
from medley.training.evaluate import (
    EvaluateConfig,
    FusedRanker,
    Questions,
    Ranked,
    Ranker,
    format_table,
    make_questions,
    rank_block,
    rank_users,
    rating_errors,
    summarise,
)
from medley.training.examples import Example, make_examples
from medley.training.measures import Catalogue, Plain, measure_split, values_of
from medley.training.model_card import model_card
from medley.training.rankers import ranker_of
from medley.training.run_page import RunReport, run_page
from medley.training.slices import groups_of, item_groups

logger = logging.getLogger(__name__)

SCORES_WORTH_THE_CLUSTER = 1 << 28
"""Scores below which everything is ranked in this process: two to three seconds, the time that a new worker needs to start."""

Results = dict[str, dict[str, dict[str, Any]]]
"""scorer → item group → metric → value"""


@dataclass(frozen=True)
class Content:
    """What is known of the items beside who had them. vectors: of their modalities. shares: modality → (N,) float32 share of an item's content vector."""

    vectors: CatalogueVectors
    shares: Mapping[str, np.ndarray]


NO_CONTENT = Content(CatalogueVectors({}, {}), {})


def evaluate_run(
    run_uri: str,
    run_kind: str,
    data: PreparedData,
    tables_uri: str,
    config: EvaluateConfig,
    *,
    content: Content = NO_CONTENT,
    against_uri: str | None = None,
    seed: int = 0,
) -> dict[str, Results]:
    """Rank every split for the run and what it is measured beside, write the report beside the run; needs a Ray session.

    content: without vectors there is no content-kNN, and lists are varied by the model's own vectors. seed: of the resamples.
    Returns split → scorer → group → metric. A run of another prepared set, ours or the other one, is an InputError.
    """
    manifest, model = read_run(run_uri, run_kind, data)
    scorers = {"model": model, "popularity": popularity_scorer(data)}
    if against_uri is not None:
        scorers[_name_of(against_uri, scorers)] = read_run(against_uri, run_kind, data)[1]
    oracle = oracle_scorer(tables_uri, data)
    if oracle is not None:
        scorers["oracle"] = oracle
    groups, users = item_groups(data.train_count_N, content.vectors.present_mask_N), groups_of(data)
    has_vectors = bool(content.vectors.vectors_ND)
    units_ND = unit_vectors(content.vectors, data.train_count_N) if has_vectors else torch.nn.functional.normalize(model.item_vectors_ND, dim=1)
    catalogue = Catalogue.of(data, units_ND)
    results: dict[str, Results] = {}
    splits: Plain = {}
    examples: dict[str, list[Example]] = {}
    for split in config.splits:
        questions = make_questions(data, split, config)
        rankers: dict[str, Ranker | FusedRanker] = {name: ranker_of(scorer, questions, config) for name, scorer in scorers.items()}
        if has_vectors:
            rankers["content_knn"] = ContentKnn.of(units_ND, data, questions.given, config.content_neighbours)
        ranked = rank_all(rankers, questions, groups, max(config.ks))
        values = values_of(ranked, config)
        results[split] = {name: {group: summarise(by_metric) for group, by_metric in by_group.items()} for name, by_group in values.items()}
        part = data.interactions(split)
        if isinstance(model, Scorer) and _predicts_ratings(manifest["config"]):
            results[split]["model"]["all"] |= rating_errors(model, part.users, part.items, part.values)
        splits[split] = measure_split(ranked, values, questions.users, users, catalogue, config, seed)
        examples[split] = make_examples(data, questions, ranked["model"]["all"])
        logger.info("%s\n%s", split, format_table(results[split], f"ndcg@{config.k}"))
    write_json(join_uri(run_uri, "report", "metrics.json"), results)
    evaluation = {
        "run": {"fingerprint": manifest["fingerprint"], "prepared": data.identity, "against": against_uri},
        "settings": config.model_dump(mode="json"),
        "item_groups": {name: len(items) for name, items in groups.items()},
        "splits": splits,
    }
    write_json(join_uri(run_uri, "report", "evaluation.json"), evaluation)
    _write_pages(run_uri, manifest, data, evaluation, _mean_shares(content.shares, groups), examples, config)
    return results


def _write_pages(
    run_uri: str,
    manifest: Mapping[str, Any],
    data: PreparedData,
    evaluation: Plain,
    modality_shares: Mapping[str, Mapping[str, float]],
    examples: Mapping[str, Sequence[Example]],
    config: EvaluateConfig,
) -> None:
    """report.html and model_card.md."""
    history_uri = join_uri(run_uri, "history.json")
    report = RunReport(
        name=manifest["config"]["name"],
        counts={name: count for name, count in data.manifest["counts"].items() if name.startswith("num_")},
        history=read_json(history_uri) if exists(history_uri) else [],
        evaluation=evaluation,
        modality_shares=modality_shares,
        examples=examples,
        config=config,
    )
    write_bytes(join_uri(run_uri, "report", "report.html"), run_page(report).encode())
    write_bytes(join_uri(run_uri, "report", "model_card.md"), model_card(report, manifest["config"], manifest["versions"]).encode())


def _predicts_ratings(config: Mapping[str, Any]) -> bool:
    """Whether the scores of a run's model stand for values; all other scores only order the items."""
    train = config["train"]
    return train.get("feedback") == "explicit" or (train["kind"] == "gradient" and config["loss"]["kind"] == "mse")


def _name_of(against_uri: str, taken: Collection[str]) -> str:
    """What the other run is called beside ours."""
    name = against_uri.rsplit("/", 1)[-1]
    return f"run {name}" if name in taken else name


def _mean_shares(shares: Mapping[str, np.ndarray], groups: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """item group → modality → mean share; groups without items are left out."""
    return {group: {name: float(share_N[items].mean()) for name, share_N in shares.items()} for group, items in groups.items() if shares and len(items)}


def read_run(run_uri: str, run_kind: str, data: PreparedData) -> tuple[dict[str, Any], Scorer | Blend]:
    """Manifest and scorer of a finished run of this prepared set, hash verified."""
    manifest = read_manifest(run_uri, run_kind)
    if manifest["parents"]["prepared"] != data.identity:
        raise InputError(
            f"run '{run_uri}' was trained on prepared set {manifest['parents']['prepared']}",
            f"the set {data.identity}",
            "evaluate it with its own configuration, and compare runs of the same tables, data settings and seed",
        )
    verify_files(run_uri, manifest, prefix="scorer")
    return manifest, read_scorer(join_uri(run_uri, "scorer.safetensors"))


def rank_all(
    rankers: Mapping[str, Ranker | FusedRanker], questions: Questions, groups: dict[str, np.ndarray], k: int, min_scores: int = SCORES_WORTH_THE_CLUSTER
) -> dict[str, dict[str, Ranked]]:
    """scorer → item group → the best items: in this process, or with min_scores or more in Ray tasks, one per scorer and block of users."""
    num_scores = len(rankers) * len(questions.users) * len(groups["all"])
    if num_scores < min_scores:
        return {name: rank_users(ranker, questions, groups, k) for name, ranker in rankers.items()}
    task: Any = ray.remote(num_cpus=1, max_retries=3)(rank_block)
    questions_ref, groups_ref = ray.put(questions), ray.put(groups)
    pending: dict[str, list[Any]] = {}
    for name, ranker in rankers.items():
        ranker_ref = ray.put(ranker)
        pending[name] = [task.remote(ranker_ref, questions_ref, block, groups_ref, k) for block in range(questions.num_blocks)]
    ranked = {}
    for name, references in pending.items():
        blocks = ray.get(references)
        ranked[name] = {group: Ranked.join([block[group] for block in blocks]) for group in groups}
    return ranked
