"""python -m tests.bench.evaluation [--quick]: the exact full-catalogue evaluation of MovieLens-1M beside irspack's and the machine's limit.

6,039 users × 3,628 items, random vectors of 128 dimensions, metrics at 5, 10 and 20 on the valid split, train items left out, in one process
with the interactions in memory. Rounds are interleaved; figures are medians of paired ratios. The data set lies beside the repository; without
it the bench ends with a line.

Figures: ml1m_seconds (questions, ranking, metrics of one model; at most 2), whole_report_seconds (model and popularity in all groups of items,
intervals, slices, everything beyond accuracy), vs_irspack (its seconds over ours for ranking and metrics), largest_difference_to_irspack (of
its metrics to ours), of_limit (seconds of matrix products and torch.topk alone over ours for ranking and metrics).
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

RAW = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "ml1m"
DIMENSION, KS, NUM_ROUNDS = 128, (5, 10, 20), 5
IRSPACK_NAMES = {"ndcg": "ndcg", "recall": "recall", "precision": "precision", "hit": "hit_rate"}


def main() -> None:
    """Measure, print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.evaluation", description="Full-catalogue evaluation of MovieLens-1M.")
    parser.add_argument("--quick", action="store_true", help="one round: only shows that it runs")
    num_rounds = 1 if parser.parse_args().quick else NUM_ROUNDS
    if not RAW.exists():
        print(f"skipped: '{RAW}' is absent", file=sys.stderr)
        print(json.dumps({"bench": "evaluation", "figures": {}, "detail": {}}))
        return
    with tempfile.TemporaryDirectory() as storage:
        data, config = prepared(storage)
        figures, detail = measure(data, config, num_rounds)
    print(json.dumps({"bench": "evaluation", "figures": figures, "detail": detail | {"num_cpus": os.cpu_count(), "load_average": os.getloadavg()}}))


def prepared(storage: str) -> tuple[Any, Any]:
    """The prepared set with its interactions in memory, and the settings of evaluation."""
    from jobs.prepare import prepare_run
    from medley.cluster.session import ray_session
    from medley.config import make_run
    from medley.data.convert import convert
    from medley.data.prepared import PreparedData

    values = {"storage": storage, "name": "ml1m", "convert": {"kind": "movielens", "raw": str(RAW)}, "data": {"media": {"image_max_side_pixels": 32}}}
    run = make_run({**values, "train": {"kind": "gradient"}, "evaluate": {"ks": KS, "splits": ["valid"]}}, "bench")
    assert run.convert is not None
    with ray_session("local"):
        convert(run.convert, run.tables_uri)
        data = PreparedData.open(prepare_run(run)["prepared"])
    data.train_lists, data.item_facts, data.users  # noqa: B018  # read once, as training has them
    return data, run.evaluate


def measure(data: Any, config: Any, num_rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of each contestant in turn; (figures, detail)."""
    from medley.index.scorer import Scorer
    from medley.training.baselines import popularity_scorer
    from medley.training.evaluate import VectorRanker, make_questions, rank_users, whole_catalogue
    from medley.training.measures import Catalogue, measure_split, values_of
    from medley.training.slices import groups_of, item_groups

    generator = torch.Generator().manual_seed(0)
    users_VD, items_ND = (torch.randn(count, DIMENSION, generator=generator) for count in (data.num_users, data.num_items))
    scorer = Scorer(users_VD, items_ND, torch.zeros(data.num_users), torch.randn(data.num_items, generator=generator), torch.zeros(()))
    questions = make_questions(data, "valid", config)

    def rank(asked: Any) -> dict[str, np.ndarray]:
        return rank_users(VectorRanker.of(scorer, asked, config), asked, whole_catalogue(data.num_items), max(KS))["all"].metrics(KS)

    def whole_report() -> None:
        asked, groups = make_questions(data, "valid", config), item_groups(data.train_count_N, {})
        scorers = {"model": scorer, "popularity": popularity_scorer(data)}
        ranked = {name: rank_users(VectorRanker.of(part, asked, config), asked, groups, max(KS)) for name, part in scorers.items()}
        catalogue = Catalogue.of(data, torch.nn.functional.normalize(items_ND, dim=1))
        measure_split(ranked, values_of(ranked, config), asked.users, groups_of(data), catalogue, config, seed=0)

    def limit() -> None:
        columns_ND = scorer.item_columns_ND
        for block_BD in scorer.user_columns_VD.split(256):
            torch.topk(block_BD @ columns_ND.T, max(KS), dim=1)

    contestants: dict[str, Callable[[], Any]] = {
        "ours": lambda: rank(make_questions(data, "valid", config)),
        "rank": lambda: rank(questions),
        "report": whole_report,
        "limit": limit,
    }
    peer = irspack_evaluation(data, questions, scorer)
    if peer is not None:
        contestants["irspack"] = peer
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        contestant()  # first calls prepare kernels
    for _ in range(num_rounds):
        for name, contestant in contestants.items():
            started = time.perf_counter()
            contestant()
            seconds[name].append(time.perf_counter() - started)
    taken = {name: np.array(values) for name, values in seconds.items()}
    figures = {
        "ml1m_seconds": float(np.median(taken["ours"])),
        "whole_report_seconds": float(np.median(taken["report"])),
        "of_limit": float(np.median(taken["limit"] / taken["rank"])),
    }
    if peer is not None:
        own, theirs = rank(questions), peer()
        figures["vs_irspack"] = float(np.median(taken["irspack"] / taken["rank"]))
        differences = [abs(np.nanmean(own[f"{ours}@{k}"]) - theirs[f"{name}@{k}"]) for name, ours in IRSPACK_NAMES.items() for k in KS]
        figures["largest_difference_to_irspack"] = float(max(differences))
    quartiles = {name: np.quantile(values, [0.25, 0.5, 0.75]).round(4).tolist() for name, values in taken.items()}
    return figures, {"seconds_quartiles": quartiles, "num_users": len(questions.users), "num_items": data.num_items, "torch_threads": torch.get_num_threads()}


def irspack_evaluation(data: Any, questions: Any, scorer: Any) -> Callable[[], dict[str, float]] | None:
    """irspack's evaluator on the same scores, its documented fast way (chunks of scores); None with a line where it is not installed."""
    try:
        from irspack import Evaluator
        from scipy.sparse import csr_matrix
    except ImportError as error:
        print(f"skipped: irspack ({error})", file=sys.stderr)
        return None

    def matrix(lists: Any) -> Any:
        rows, items = lists.pairs(questions.users)
        return csr_matrix((np.ones(len(rows)), (rows, items)), shape=(len(questions.users), data.num_items))

    evaluator = Evaluator(matrix(questions.targets), cutoff=max(KS), masked_interactions=matrix(questions.excluded), n_threads=os.cpu_count(), mb_size=256)
    users_VD, items_ND = scorer.user_columns_VD[torch.from_numpy(questions.users)], scorer.item_columns_ND

    def chunks() -> Iterator[np.ndarray]:
        for block_BD in users_VD.split(evaluator.mb_size):
            yield (block_BD @ items_ND.T).numpy()

    return lambda: evaluator.get_scores_from_score_chunks(chunks(), list(KS))


if __name__ == "__main__":
    main()
