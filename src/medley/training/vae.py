"""From a prepared set to the scorer of a RecVAE, in one process."""

import logging
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medley.data.plan import derive_seed
from medley.data.prepared import PreparedData
from medley.heads.sparse import SparseRows
from medley.heads.vae import Histories, RecVae, VaeConfig
from medley.index.scorer import Scorer
from medley.training.evaluate import EvaluateConfig
from medley.training.validation import validate_scorer

logger = logging.getLogger(__name__)

ENCODER_PASSES = 3
"""Passes of the encoder for one of the decoder (Shenbin et al. 2020)."""


def train_vae(config: VaeConfig, data: PreparedData, evaluate: EvaluateConfig, seed: int) -> tuple[Scorer, list[dict[str, Any]]]:
    """The scorer, and loss and seconds of every epoch, the last one with its validation metrics.

    Trained users have the encoder's mean as their vector; others are folded in over the decoder's rows, as for every scorer.
    """
    users, items = data.train_lists.pairs(np.arange(data.num_users))
    history = SparseRows.from_pairs(users, items, np.ones(len(items)), data.num_users, data.num_items)
    trained = torch.nonzero(history.lengths > 0).squeeze(1)
    torch.manual_seed(derive_seed(seed, "vae"))
    model = RecVae(data.num_items, config.hidden_dimension, config.dimension)
    optimizers = [torch.optim.Adam(part.parameters(), lr=config.learning_rate, fused=True) for part in (model.encoder, model.decoder)]
    mean_length = history.lengths[trained].float().mean()
    user_weight_V = (history.lengths.float().clamp(min=1) / mean_length) ** -config.user_weight_exponent
    entries: list[dict[str, Any]] = []
    for epoch in range(config.epochs):
        started = time.monotonic()
        generator = torch.Generator().manual_seed(derive_seed(seed, "vae", epoch))
        rate = config.learning_rate * rate_factor(epoch, config.epochs, config.decay_share)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate
        for _ in range(ENCODER_PASSES):
            loss = _train_pass(model, optimizers[0], history, trained, user_weight_V, config, config.dropout, generator)
        model.remember_encoder()
        _train_pass(model, optimizers[1], history, trained, user_weight_V, config, 0.0, generator)
        entries.append({"epoch": epoch, "loss": loss, "seconds": time.monotonic() - started})
        logger.info("epoch %d/%d | loss %.4f | %.2f s", epoch + 1, config.epochs, loss, entries[-1]["seconds"])
    scorer = scorer_of(model, history, config.batch_size)
    entries[-1]["valid"] = validate_scorer(scorer, data, evaluate, config.metric)
    return scorer, entries


def rate_factor(epoch: int, num_epochs: int, decay_share: float) -> float:
    """1, then in a line to 0 over the last share of the epochs."""
    return min(1.0, (num_epochs - epoch) / (num_epochs * decay_share)) if decay_share else 1.0


def _train_pass(
    model: RecVae,
    optimizer: torch.optim.Optimizer,
    history: SparseRows,
    trained: Tensor,
    user_weight_V: Tensor,
    config: VaeConfig,
    dropout: float,
    generator: torch.Generator,
) -> float:
    """One pass over the users for one part of the model; returns the mean loss."""
    losses = []
    for users in trained[torch.randperm(len(trained), generator=generator)].split(config.batch_size):
        loss_B = model.loss(Histories.of(history, users), dropout, config.kl_weight, generator)
        loss = (loss_B * user_weight_V[users]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=optimizer.param_groups[0]["params"])  # gradients of the other part would be thrown away
        optimizer.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses))


@torch.no_grad()
def scorer_of(model: RecVae, history: SparseRows, batch_size: int) -> Scorer:
    """Means of the users' codes × rows of the decoder; zeros for users without items."""
    users_VD = torch.cat([model.encoder(Histories.of(history, users))[0] for users in torch.arange(history.num_rows).split(batch_size)])
    users_VD *= (history.lengths > 0)[:, None]
    return Scorer(users_VD, model.decoder.weight.detach(), torch.zeros(len(users_VD)), model.decoder.bias.detach(), torch.zeros(()))
