"""A blend of finished runs: read, checked to be of the same data, weights fitted on validation."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from medley.data.prepared import PreparedData
from medley.index.blend import Blend, place_gains
from medley.index.scorer import Scorer
from medley.manifest import absolute_uri, join_uri
from medley.metrics.ranking import mean_over_users, ranking_metrics
from medley.schema import InputError
from medley.training.compare import read_run
from medley.training.evaluate import EvaluateConfig, Questions, Ranker, VectorRanker, known_users
from medley.training.validation import even_sample, validate_scorer, validation_questions

logger = logging.getLogger(__name__)

MAX_FIT_USERS = 20_000
"""Validation users, evenly spread, that the weights are fitted on: more would not move them and would not fit into memory."""
STEPS = (0.2, 0.1, 0.05)
"""Shares that the fit moves between parts, coarse to fine."""
MISSING = -1e9
"""Gain that puts a place without a candidate behind all candidates."""


class BlendConfig(BaseModel):
    """Finished runs of the same data, combined."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["blend"] = "blend"
    runs: tuple[str, ...] = Field(min_length=2)
    """names of runs in the same storage, or their folders"""
    how: Literal["rank", "linear"] = "rank"
    """rank: each part retrieves candidates, their places are fused (parts may score in any way); linear: scores, brought to one scale, are added"""
    weights: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] | None = None
    """share of each run, not all 0; null: fitted on validation"""
    metric: str = Field(default="ndcg@20", pattern=r"^(ndcg|recall)@[1-9]\d*$")
    """validation metric that the weights are fitted to"""
    cpus_per_worker: float = Field(default=1, gt=0)
    """CPUs of the one process that fits them"""

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, weights: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if weights is not None and sum(weights) == 0:
            raise ValueError("a weight above 0")
        return weights


def train_blend(config: BlendConfig, data: PreparedData, evaluate: EvaluateConfig, seed: int) -> tuple[Blend, list[dict[str, Any]]]:
    """The blend, and a history of one entry: valid, weights, and alone (part → its own metric). config.runs: folders. `seed` decides nothing here.

    Runs of other data, runs that are blends themselves and equal names are InputErrors.
    """
    parts = read_parts(config.runs, data)
    if config.weights is not None and len(config.weights) != len(parts):
        raise InputError(f"train.weights has {len(config.weights)} numbers for {len(parts)} runs", "one per run", "correct train.weights")
    if config.weights is None and len(data.interactions("valid")) == 0:
        raise InputError("the prepared set has no validation interactions", "some, to fit the weights on", "set train.weights, or another data.split")
    scales = {name: 1.0 if config.how == "rank" else 1 / _deviation(part) for name, part in parts.items()}
    shares = list(config.weights) if config.weights is not None else fit_shares(Blend(parts, scales, config.how == "rank"), data, evaluate, config.metric)
    blend = Blend(parts, {name: share * scales[name] for (name, share) in zip(parts, shares, strict=True)}, config.how == "rank")
    valid = validate_scorer(blend, data, evaluate, config.metric)
    alone = {name: validate_scorer(part, data, evaluate, config.metric).get(config.metric) for name, part in parts.items()}
    logger.info("blend | %s | shares %s", valid, {name: round(share, 3) for name, share in zip(parts, shares, strict=True)})
    return blend, [{"valid": valid, "weights": dict(zip(parts, shares, strict=True)), "alone": alone}]


def read_parts(runs: Sequence[str], data: PreparedData) -> dict[str, Scorer]:
    """Name → scorer of finished runs of this prepared set."""
    parts: dict[str, Scorer] = {}
    for uri in runs:
        name = uri.rsplit("/", 1)[-1]
        if name in parts:
            raise InputError(f"train.runs has two runs named '{name}'", "names of their own", "train one of them under another name=")
        manifest, scorer = read_run(uri, "run", data)
        if not isinstance(scorer, Scorer):
            raise InputError(f"run '{name}' is a {manifest['config']['train']['kind']} itself", "runs of one model each", "name its parts in train.runs")
        parts[name] = scorer
    return parts


def _deviation(part: Scorer) -> float:
    """Mean deviation of a user's scores over the items, of an even sample of users."""
    users = torch.from_numpy(even_sample(len(part.user_vectors_VD), 256))
    deviation = float((part.user_columns_VD[users] @ part.item_columns_ND.T).std(dim=1).mean())
    return max(deviation, 1e-12)


@dataclass(frozen=True)
class Candidates:
    """What the parts say of each user's candidates: gains_PBC (parts, users, candidates; MISSING past the last), relevant_BC bool, num_relevant_B."""

    gains_PBC: Tensor
    relevant_BC: Tensor
    num_relevant_B: Tensor

    def metric(self, shares: Sequence[float], metric: str) -> float:
        """The metric NAME@K of a weighted sum."""
        k = int(metric.rpartition("@")[2])
        fused_BC = torch.einsum("pbc,p->bc", self.gains_PBC, torch.tensor(shares, dtype=torch.float32))
        best_BK = torch.topk(fused_BC, min(k, fused_BC.shape[1]), dim=1).indices
        return mean_over_users(ranking_metrics(self.relevant_BC.gather(1, best_BK), self.num_relevant_B, (k,))[metric])


def fit_shares(blend: Blend, data: PreparedData, evaluate: EvaluateConfig, metric: str) -> list[float]:
    """Shares (sum 1) of the parts, in steps of 0.05: from equal ones, the move of a share to a part that helps most, until none does."""
    questions = validation_questions(data, evaluate, MAX_FIT_USERS)
    found = gather_candidates(blend, questions, questions.users, evaluate)
    num_parts = len(blend.parts)
    shares = [1 / num_parts] * num_parts
    best = found.metric(shares, metric)
    for step in STEPS:
        while True:
            tried = {}
            for place in range(num_parts):
                for change in (step, -step):
                    moved = [max(0.0, share + change * (1.0 if own == place else -1 / (num_parts - 1))) for own, share in enumerate(shares)]
                    if sum(moved) > 0:
                        normed = tuple(share / sum(moved) for share in moved)
                        tried[normed] = found.metric(normed, metric)
            winner = max(tried, key=lambda key: tried[key])
            if tried[winner] <= best + 1e-6:
                break
            shares, best = list(winner), tried[winner]
    return shares


def gather_candidates(blend: Blend, questions: Questions, users: np.ndarray, evaluate: EvaluateConfig) -> Candidates:
    """The union of the parts' best items of each user, with each part's gain by rank, or its scaled score."""
    is_known_V = known_users(blend, questions)
    rankers = [VectorRanker.of(part, questions, evaluate, is_known_V) for part in blend.parts.values()]
    blocks = [_block_candidates(rankers, blend, questions, users[start : start + 256]) for start in range(0, len(users), 256)]
    width = max(gains.shape[2] for gains, _, _ in blocks)
    padded = [torch.nn.functional.pad(gains, (0, width - gains.shape[2]), value=MISSING) for gains, _, _ in blocks]
    relevant = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for _, part, _ in blocks]
    return Candidates(torch.cat(padded, dim=1), torch.cat(relevant), torch.cat([count for _, _, count in blocks]))


def _block_candidates(rankers: Sequence[Ranker], blend: Blend, questions: Questions, users: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    excluded, targets = (tuple(torch.from_numpy(part.astype(np.int64)) for part in lists.pairs(users)) for lists in (questions.excluded, questions.targets))
    gains, is_candidate_BN = [], None
    for ranker, scale in zip(rankers, blend.weights.values(), strict=True):
        scores_BN = ranker.scores(users)
        scores_BN[excluded] = -torch.inf
        gains_BN = place_gains(scores_BN)
        is_own_BN = gains_BN > -torch.inf
        is_candidate_BN = is_own_BN if is_candidate_BN is None else is_candidate_BN | is_own_BN
        gains.append(gains_BN.clamp(min=0).float() if blend.by_rank else scale * scores_BN)
    assert is_candidate_BN is not None
    relevant_BN = torch.zeros_like(is_candidate_BN)
    relevant_BN[targets] = True
    width = int(is_candidate_BN.sum(dim=1).max())
    candidates_BC = torch.sort(is_candidate_BN.to(torch.uint8), dim=1, descending=True, stable=True).indices[:, :width]
    real_BC = is_candidate_BN.gather(1, candidates_BC)
    gains_PBC = torch.stack([gain_BN.gather(1, candidates_BC).masked_fill(~real_BC, MISSING) for gain_BN in gains])
    return gains_PBC, relevant_BN.gather(1, candidates_BC) & real_BC, relevant_BN.sum(dim=1)


def part_folders(config: BlendConfig, storage: str) -> BlendConfig:
    """The configuration with names replaced by the folders of these runs."""
    return config.model_copy(update={"runs": tuple(absolute_uri(run) if "/" in run else join_uri(storage, "runs", run) for run in config.runs)})
