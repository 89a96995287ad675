"""python -m tests.bench.als [--quick]: seconds of alternating least squares to 0.995 × irspack's best NDCG@20 on MovieLens-1M, ours and irspack's.

Same vectors' width, regularisation and weights; two threads each; ranking is not counted. Figure: speed_vs_irspack, the median over interleaved
rounds of irspack's seconds through ours. implicit is shown with its own best. In detail: the same factors from two workers as from one.
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

from tests.bench.movielens_lists import RAW, Lists, ranking_metrics, top_20
from tests.bench.peers import peer_python

EPOCHS = 16
ROUNDS = 5
SHARE_OF_BEST = 0.995
THREADS = 2
SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Unset for everybody: they hold matrix products of OpenBLAS at under half of the machine."""


def main() -> None:
    """Measure, print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.als", description="Seconds to equal quality, beside irspack and implicit.")
    parser.add_argument("--raw", type=Path, default=RAW, help="folder of the split lists")
    parser.add_argument("--quick", action="store_true", help="one round of four epochs: only shows that it runs")
    arguments = parser.parse_args()
    if any(name in os.environ for name in SLOWING):
        kept = {name: value for name, value in os.environ.items() if name not in SLOWING}
        os.execve(sys.executable, [sys.executable, "-m", "tests.bench.als", *sys.argv[1:]], kept)
    epochs, rounds = (4, 1) if arguments.quick else (EPOCHS, ROUNDS)
    train, valid = (Lists.read(arguments.raw / f"{split}.txt") for split in ("train", "valid"))
    python = peer_python("matrix_factorisation")
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"ours": [], "irspack": [], "implicit": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for peer in ("irspack", "implicit") if python else ():
                found[peer].append(run_peer(str(python), peer, arguments.raw, Path(folder) / "out.npz", epochs))
            found["ours"].append(run_ours(train, valid, epochs))
    to_goal: dict[str, list[float]] = {"ours": [], "irspack": []}
    for place in range(rounds):
        goal = SHARE_OF_BEST * max(found["irspack" if python else "ours"][place][1])
        for name in to_goal:
            if found[name]:
                to_goal[name].append(seconds_to(goal, *found[name][place]))
    ratios = [theirs / ours for theirs, ours in zip(to_goal["irspack"], to_goal["ours"], strict=True)] if python else []
    figures = {"speed_vs_irspack": statistics.median(ratios)} if ratios else {}
    detail: dict[str, Any] = {
        "quartiles": statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios,
        "seconds_to_goal": {name: [seconds if np.isfinite(seconds) else None for seconds in of] for name, of in to_goal.items()},
        "best_ndcg20": {name: max(float(ndcg.max()) for _, ndcg in of) for name, of in found.items() if of},
        "seconds_of_all_epochs": {name: statistics.median(float(seconds[-1]) for seconds, _ in of) for name, of in found.items() if of},
        "two_workers_largest_difference": difference_of_two_workers(train),
        "num_cpus": os.cpu_count(),
    }
    print(json.dumps({"bench": "als", "figures": figures, "detail": detail}))


def seconds_to(goal: float, seconds_E: np.ndarray, ndcg20_E: np.ndarray) -> float:
    """Training time until the first epoch that reaches the goal; infinite where none does."""
    reached = np.flatnonzero(ndcg20_E >= goal)
    return float(seconds_E[reached[0]]) if len(reached) else float("inf")


def run_peer(python: str, peer: str, raw: Path, out: Path, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and NDCG@20 after each epoch, in the peer's environment."""
    subprocess.run([python, "-m", "tests.bench.als_peers", peer, str(raw), str(out), str(epochs)], check=True, stdout=sys.stderr)
    with np.load(out) as results:
        return results["seconds_E"], results["ndcg20_E"]


def _config(epochs: int, **changes: Any) -> Any:
    from medley.heads.als import AlsConfig

    return AlsConfig(dimension=128, epochs=epochs, regularization=0.007, unobserved_weight=0.3, **changes)


def run_ours(train: Lists, valid: Lists, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of ours, in this process; the time to arrange the interactions is counted."""
    import torch

    from medley.training.als import first_vectors, implicit_problem, make_solvers, sweep

    torch.set_num_threads(THREADS)
    config = _config(epochs)
    num_users, num_items = (max(getattr(train, name).max(), getattr(valid, name).max()) + 1 for name in ("users", "items"))
    seconds, ndcg, spent = [], [], 0.0
    started = time.monotonic()
    problem = implicit_problem(config, train.users, train.items, np.ones(len(train.users), dtype=np.float32), num_users, num_items)
    solvers = make_solvers(problem, config)
    users_VD, items_ND = first_vectors(config, problem, seed=0)
    for _ in range(epochs):
        users_VD, items_ND, _loss = sweep(solvers, problem, config, users_VD, items_ND, None)
        spent += time.monotonic() - started
        seconds.append(spent)
        ndcg.append(ranking_metrics(top_20((users_VD @ items_ND.T).numpy(), train), valid)["ndcg20"])
        started = time.monotonic()
    return np.array(seconds), np.array(ndcg)


def difference_of_two_workers(train: Lists) -> float:
    """Largest difference of any number of the item vectors after two epochs by one process and by two Ray actors."""
    from medley.cluster.session import ray_session
    from medley.training.als import first_vectors, implicit_problem, make_solvers, sweep

    found = []
    with ray_session():
        for workers in (1, 2):
            config = _config(2, workers=workers)
            ones = np.ones(len(train.users), dtype=np.float32)
            problem = implicit_problem(config, train.users, train.items, ones, train.users.max() + 1, train.items.max() + 1)
            solvers = make_solvers(problem, config)
            users_VD, items_ND = first_vectors(config, problem, seed=0)
            for _ in range(config.epochs):
                users_VD, items_ND, _loss = sweep(solvers, problem, config, users_VD, items_ND, None)
            found.append(items_ND)
    return float((found[0] - found[1]).abs().max())


if __name__ == "__main__":
    main()
