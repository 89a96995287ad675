"""python -m tests.bench.movielens_peers RAW OUT.npz [--quick]: what others rank on MovieLens-1M, in an environment that has them.

Writes for each peer and setting its 20 best items of every user (train left out) and its seconds. Popularity and EASE are written out here.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse as sps

from tests.bench.movielens_lists import Lists, top_20

EASE_SETTINGS = (500.0, 1000.0)
IMPLICIT_SETTINGS = ((1.0, 10.0), (2.0, 20.0), (3.3, 28.0), (5.0, 40.0))
"""(alpha, regularization); its ridge does not grow with the interactions, so it is of the size that irspack's has for the mean user"""
IRSPACK_SETTINGS = ((128, 0.3, 0.007), (256, 0.3, 0.007))
"""(dimension, alpha0, regularization), 16 epochs: the best of performance tables for this data"""


def main() -> None:
    """Rank with every peer, write one file."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.movielens_peers")
    parser.add_argument("raw", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    train = Lists.read(arguments.raw / "train.txt")
    valid = Lists.read(arguments.raw / "valid.txt")
    shape = (max(train.users.max(), valid.users.max()) + 1, max(train.items.max(), valid.items.max()) + 1)
    history = sps.csr_matrix((np.ones(len(train.users), dtype=np.float32), (train.users, train.items)), shape=shape)
    peers: dict[str, Callable[[], np.ndarray]] = {"popularity": lambda: np.tile(np.asarray(history.sum(axis=0), dtype=np.float32), (shape[0], 1))}
    peers |= {f"EASE λ={ridge:g}": lambda ridge=ridge: ease(history, ridge) for ridge in EASE_SETTINGS}
    epochs = 2 if arguments.quick else 16
    peers |= {f"implicit ALS α={a:g} λ={r:g}": lambda a=a, r=r: implicit_als(history, a, r, epochs) for a, r in IMPLICIT_SETTINGS}
    peers |= {f"irspack iALS d={d}": lambda d=d, a=a, r=r: irspack_ials(history, d, a, r, epochs) for d, a, r in IRSPACK_SETTINGS}
    results: dict[str, np.ndarray] = {}
    for name, score in peers.items():
        started = time.monotonic()
        scores = score()
        seconds = time.monotonic() - started
        results[f"{name}/top"], results[f"{name}/seconds"] = top_20(scores, train), np.array(seconds)
    np.savez(arguments.out, **results)


def ease(history: sps.csr_matrix, ridge: float) -> np.ndarray:
    """Steck 2019."""
    gram = np.asarray((history.T @ history).todense(), dtype=np.float32)
    gram[np.diag_indices_from(gram)] += ridge
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return np.asarray(history @ weights, dtype=np.float32)


def implicit_als(history: sps.csr_matrix, alpha: float, regularization: float, epochs: int) -> np.ndarray:
    """implicit, conjugate gradient, 128 factors."""
    from implicit.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    model = AlternatingLeastSquares(factors=128, alpha=alpha, regularization=regularization, iterations=epochs, num_threads=2, random_state=0)
    with threadpool_limits(1, "blas"):  # implicit's own advice: its threads share the rows out
        model.fit(history, show_progress=False)
    return model.user_factors @ model.item_factors.T


def irspack_ials(history: sps.csr_matrix, dimension: int, alpha0: float, regularization: float, epochs: int) -> np.ndarray:
    """irspack."""
    from irspack import IALSRecommender

    model = IALSRecommender(history, n_components=dimension, alpha0=alpha0, reg=regularization, train_epochs=epochs, n_threads=2)
    model.learn()
    return np.asarray(model.get_score(np.arange(history.shape[0])), dtype=np.float32)


if __name__ == "__main__":
    main()
