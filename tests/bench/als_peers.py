"""python -m tests.bench.als_peers PEER RAW OUT.npz EPOCHS: one peer's alternating least squares on MovieLens-1M, epoch by epoch, where it is installed.

Writes seconds_E (training until the end of each epoch, ranking left out) and ndcg20_E on valid.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sps

from tests.bench.movielens_lists import Lists, ranking_metrics, top_20

DIMENSION, ALPHA0, REGULARIZATION = 128, 0.3, 0.007
"""irspack's best of performance tables for this data at this width."""
IMPLICIT_ALPHA, IMPLICIT_REGULARIZATION = 2.0, 20.0


def irspack_epochs(history: sps.csr_matrix, epochs: int) -> Iterator[Callable[[], np.ndarray]]:
    """Trains an epoch at a time; yields what gives the scores then."""
    from irspack import IALSRecommender

    model = IALSRecommender(history, n_components=DIMENSION, alpha0=ALPHA0, reg=REGULARIZATION, train_epochs=epochs, n_threads=2)
    model.start_learning()
    for _ in range(epochs):
        model.run_epoch()
        yield lambda: np.asarray(model.get_score(np.arange(history.shape[0])), dtype=np.float32)


def implicit_epochs(history: sps.csr_matrix, epochs: int) -> Iterator[Callable[[], np.ndarray]]:
    """The same for implicit, which goes on from the factors that a model has."""
    from implicit.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    model = AlternatingLeastSquares(
        factors=DIMENSION, alpha=IMPLICIT_ALPHA, regularization=IMPLICIT_REGULARIZATION, iterations=1, num_threads=2, random_state=0
    )
    for _ in range(epochs):
        with threadpool_limits(1, "blas"):  # implicit's own advice: its threads share the rows out
            model.fit(history, show_progress=False)
        yield lambda: model.user_factors @ model.item_factors.T


PEERS = {"irspack": irspack_epochs, "implicit": implicit_epochs}


def main() -> None:
    """Train, time, rank, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.als_peers")
    parser.add_argument("peer", choices=tuple(PEERS))
    parser.add_argument("raw", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("epochs", type=int)
    arguments = parser.parse_args()
    train, valid = (Lists.read(arguments.raw / f"{split}.txt") for split in ("train", "valid"))
    shape = (max(train.users.max(), valid.users.max()) + 1, max(train.items.max(), valid.items.max()) + 1)
    history = sps.csr_matrix((np.ones(len(train.users), dtype=np.float32), (train.users, train.items)), shape=shape)
    seconds, ndcg, spent = [], [], 0.0
    started = time.monotonic()
    for scores in PEERS[arguments.peer](history, arguments.epochs):
        spent += time.monotonic() - started
        seconds.append(spent)
        ndcg.append(ranking_metrics(top_20(scores(), train), valid)["ndcg20"])
        started = time.monotonic()
    np.savez(arguments.out, seconds_E=np.array(seconds), ndcg20_E=np.array(ndcg))


if __name__ == "__main__":
    main()
