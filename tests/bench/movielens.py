"""python -m tests.bench.movielens [--seeds N] [--test FILE] [--quick]: how good our recipes rank MovieLens-1M, beside tuned peers.

Each recipe of jobs/configs is trained by jobs.pipeline on train.txt, packed by jobs.bundle, and its bundle is asked through Recommender for the
20 best of every user, train items left out. Figures are means over seeds: of the best single model by NDCG@20 on valid, and of the blend.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.movielens_lists import RAW, Lists, ranking_metrics, read_names
from tests.bench.peers import peer_python

SINGLE = ("ml1m_ease", "ml1m_als", "ml1m_vae")
COMBINED = "ml1m_blend"
USERS_PER_CALL = 256
SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Unset for everybody: they hold the peers' matrix products at under half of the machine."""


def main() -> None:
    """Train, ask, compare; print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.movielens", description="Recipes and peers on MovieLens-1M.")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every recipe (default 3)")
    parser.add_argument("--test", type=Path, help="a test list, `user item item …`: measured with what was chosen on valid")
    parser.add_argument("--raw", type=Path, default=RAW, help="folder of the split lists")
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs, narrow vectors: only shows that it runs")
    arguments = parser.parse_args()
    if any(name in os.environ for name in SLOWING):
        kept = {name: value for name, value in os.environ.items() if name not in SLOWING}
        os.execve(sys.executable, [sys.executable, "-m", "tests.bench.movielens", *sys.argv[1:]], kept)
    wanted = {"valid": Lists.read(arguments.raw / "valid.txt")}
    if arguments.test:
        wanted["test"] = Lists.read(arguments.test)
    with tempfile.TemporaryDirectory() as folder:
        tops, seconds = train_and_ask(arguments.raw, folder, 1 if arguments.quick else arguments.seeds, arguments.quick)
        peers, peer_seconds = rank_with_peers(arguments.raw, Path(folder), arguments.quick)
    ours = {name: [{split: ranking_metrics(top, lists) for split, lists in wanted.items()} for top in of_seeds] for name, of_seeds in tops.items()}
    others = {name: {split: ranking_metrics(top, lists) for split, lists in wanted.items()} for name, top in peers.items()}
    mean = {name: {split: mean_of([seed[split] for seed in of_seeds]) for split in wanted} for name, of_seeds in ours.items()}
    chosen = max(SINGLE, key=lambda name: mean[name]["valid"]["ndcg20"])
    figures = {f"{metric}_valid": mean[chosen]["valid"][metric] for metric in ("ndcg20", "recall10")}
    figures |= {f"{metric}_valid_combined": mean[COMBINED]["valid"][metric] for metric in ("ndcg20", "recall10")}
    if arguments.test:
        best = max((chosen, COMBINED), key=lambda name: mean[name]["valid"]["ndcg20"])
        figures |= {f"{metric}_test": mean[best]["test"][metric] for metric in ("ndcg10", "recall10", "ndcg20")}
    detail = {
        "best_single": chosen,
        "by_seed": ours,
        "spread_ndcg20_valid": {name: max(values) - min(values) for name, values in ((n, [s["valid"]["ndcg20"] for s in of]) for n, of in ours.items())},
        "seconds": seconds,
        "peers": others,
        "peer_seconds": peer_seconds,
        "num_cpus": os.cpu_count(),
    }
    print(table(mean | others, {**seconds, **peer_seconds}), file=sys.stderr)
    print(json.dumps({"bench": "movielens", "figures": figures, "detail": detail}))


def train_and_ask(raw: Path, folder: str, num_seeds: int, quick: bool) -> tuple[dict[str, list[np.ndarray]], dict[str, float]]:
    """Recipe → for each seed the 20 best of every user; recipe → mean seconds of training."""
    from jobs.pipeline import run_pipeline
    from medley.cluster.session import ray_session
    from medley.config import load_run
    from medley.serving.recommender import Recommender

    small = {"ml1m_ease": ["train.rank=16"], "ml1m_als": ["train.epochs=2", "train.dimension=16"], "ml1m_vae": ["train.epochs=1"]} if quick else {}
    tops: dict[str, list[np.ndarray]] = {name: [] for name in (*SINGLE, COMBINED)}
    seconds: dict[str, list[float]] = {name: [] for name in tops}
    raw = without_posters(raw, Path(folder) / "raw")
    with ray_session():
        for seed in range(num_seeds):
            for name in tops:
                overrides = [
                    f"storage={folder}/out",
                    f"convert.raw={raw}",
                    f"seed={seed}",
                    f"name={name}-{seed}",
                    "evaluate.resamples=100",
                    *small.get(name, []),
                ]
                if name == COMBINED:
                    overrides.append(f"train.runs=[{', '.join(f'{part}-{seed}' for part in SINGLE)}]")
                run = load_run(f"jobs/configs/{name}.yaml", overrides)
                results = run_pipeline(run)
                seconds[name].append(results["train"]["seconds"])
                tops[name].append(ask(Recommender.load(results["bundle"]["bundle"]), raw))
    return tops, {name: statistics.mean(values) for name, values in seconds.items()}


def without_posters(raw: Path, folder: Path) -> Path:
    """The same raw data without pictures, which no recipe here looks at: preparing them would take most of the bench."""
    (folder / "posters").mkdir(parents=True)
    for file in raw.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file.resolve())
    return folder


def ask(recommender: Any, raw: Path) -> np.ndarray:
    """(users, 20) item numbers, best first, train items left out and nothing else."""
    from medley.serving.recommender import Query

    item_ids, user_ids = read_names(raw, "item_map.csv", "item", "movieId"), read_names(raw, "user_map.csv", "user", "userId")
    number = {item_id: place for place, item_id in enumerate(item_ids)}
    train = Lists.read(raw / "train.txt")
    had: list[list[str]] = [[] for _ in user_ids]
    for user, item in zip(train.users.tolist(), train.items.tolist(), strict=True):
        had[user].append(item_ids[item])
    queries = [Query(user_id=user_id, k=20, exclude=own, include_seen=True) for user_id, own in zip(user_ids, had, strict=True)]
    top = np.full((len(queries), 20), -1)
    for start in range(0, len(queries), USERS_PER_CALL):
        for row, answer in enumerate(recommender.recommend_many(queries[start : start + USERS_PER_CALL]), start):
            top[row, : len(answer.items)] = [number[item.item_id] for item in answer.items]
    return top


def rank_with_peers(raw: Path, folder: Path, quick: bool) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Peer → the 20 best of every user; peer → seconds. Nothing where their environment cannot be made."""
    python = peer_python("matrix_factorisation")
    if python is None:
        return {}, {}
    out = folder / "peers.npz"
    command = [python, "-m", "tests.bench.movielens_peers", str(raw), str(out), *(["--quick"] if quick else [])]
    subprocess.run(command, check=True, stdout=sys.stderr)
    with np.load(out) as results:
        names = [key.removesuffix("/top") for key in results.files if key.endswith("/top")]
        return {name: results[f"{name}/top"] for name in names}, {name: float(results[f"{name}/seconds"]) for name in names}


def mean_of(results: list[dict[str, float]]) -> dict[str, float]:
    """Metric → mean over seeds."""
    return {metric: statistics.mean(result[metric] for result in results) for metric in results[0]}


def table(results: dict[str, Any], seconds: dict[str, float]) -> str:
    """One line per model, one column per split and metric."""
    splits = list(next(iter(results.values())))
    heads = [f"{split} {metric}" for split in splits for metric in ("ndcg10", "ndcg20", "recall10")]
    lines = [f"{'':<28}" + "".join(f"{head:>16}" for head in [*heads, "seconds"])]
    for name, by_split in sorted(results.items(), key=lambda entry: entry[1]["valid"]["ndcg20"]):
        cells = [f"{by_split[split][metric]:.4f}" for split in splits for metric in ("ndcg10", "ndcg20", "recall10")]
        lines.append(f"{name:<28}" + "".join(f"{cell:>16}" for cell in [*cells, f"{seconds[name]:.1f}"]))
    return "\n".join(lines)


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
