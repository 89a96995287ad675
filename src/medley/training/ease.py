"""From a prepared set to an EASE scorer: refused before it starts where it does not fit, cut to vectors, the cost of the cut measured."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medley.data.item_lists import ItemLists
from medley.data.plan import derive_seed
from medley.data.prepared import PreparedData
from medley.heads.ease import EaseConfig, ease_bytes, factorise, solve_ease
from medley.heads.sparse import SparseRows
from medley.index.scorer import Scorer
from medley.schema import InputError
from medley.training.content import check_content, content_gram
from medley.training.evaluate import EvaluateConfig, Questions
from medley.training.rankers import ranker_of
from medley.training.validation import validate_ranker, validate_scorer, validation_questions

logger = logging.getLogger(__name__)

MAX_CHECK_USERS = 2048
"""Validation users, evenly spread, on whom the cost of the cut is measured."""


def train_ease(config: EaseConfig, data: PreparedData, evaluate: EvaluateConfig, seed: int) -> tuple[Scorer, list[dict[str, Any]]]:
    """The scorer, and a history of one entry: valid (metric → value), full_valid (before the cut to vectors), lost (their difference), rank."""
    check_memory(data.num_items)
    check_content(config.content, data)
    rows = data.train_lists
    users, items = rows.pairs(np.arange(data.num_users))
    history = SparseRows.from_pairs(users, items, np.ones(len(items)), data.num_users, data.num_items)
    weights_NN = solve_ease(config, history, content_gram(config.content, data))
    generator = torch.Generator().manual_seed(derive_seed(seed, "ease"))
    history_vectors_ND, item_vectors_ND = factorise(weights_NN, history, config.rank, generator)
    zeros_V, zeros_N = torch.zeros(data.num_users), torch.zeros(data.num_items)
    scorer = Scorer(history.csr() @ history_vectors_ND, item_vectors_ND, zeros_V, zeros_N, torch.zeros(()), history_vectors_ND)
    valid = validate_scorer(scorer, data, evaluate, config.metric)
    entry: dict[str, Any] = {"valid": valid, "rank": item_vectors_ND.shape[1]}
    if valid:
        questions = validation_questions(data, evaluate, MAX_CHECK_USERS)
        full, cut = (
            validate_ranker(ranker, questions, data.num_items, config.metric)
            for ranker in (MatrixRanker(weights_NN, rows, questions), ranker_of(scorer, questions, evaluate))
        )
        entry |= {"full_valid": full[config.metric], "lost": full[config.metric] - cut[config.metric]}
        logger.info("ease | %s %.4f at rank %d, %+.4f by the cut", config.metric, valid[config.metric], entry["rank"], -entry["lost"])
    return scorer, [entry]


@dataclass(frozen=True)
class MatrixRanker:
    """History × the whole item-item matrix, for the users of a block at a time: all users together may not fit."""

    weights_NN: Tensor
    history: ItemLists
    questions: Questions

    def scores(self, users: np.ndarray) -> Tensor:
        """(B, N) float32; train counts for users without any item, as `VectorRanker` ranks them."""
        (rows, items), given = self.history.pairs(users), self.questions.given.pairs(users)
        rows, items = np.concatenate([rows, given[0]]), np.concatenate([items, given[1]])
        history = SparseRows.from_pairs(rows, items, np.ones(len(items)), len(users), len(self.weights_NN))
        scores_BN = history.csr() @ self.weights_NN
        scores_BN[history.lengths == 0] = torch.from_numpy(self.questions.train_count_N).float()
        return scores_BN


def check_memory(num_items: int, available_bytes: int | None = None, what: str = "EASE") -> None:
    """An InputError where EASE of so many items does not fit, or what else holds matrices of items × items. available_bytes: None asks the machine."""
    available_bytes = _available_bytes() if available_bytes is None else available_bytes
    needed = ease_bytes(num_items)
    if needed > available_bytes:
        raise InputError(
            f"{what} of {num_items:,} items needs {needed / 1e9:.1f} GB of memory, this machine has {available_bytes / 1e9:.1f} GB free",
            f"at most {int((available_bytes / ease_bytes(1)) ** 0.5):,} items here",
            "use train.kind: als without content, leave rare items out with data.min_item_interactions, or take a larger machine",
        )


def _available_bytes() -> int:
    """Memory that may be used without swapping, the limit of a container included; the whole memory where the system does not say."""
    facts = Path("/proc/meminfo")
    if not facts.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = next(int(line.split()[1]) * 1024 for line in facts.read_text().splitlines() if line.startswith("MemAvailable"))
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return available if text == "max" else min(available, int(text))
