"""RecVAE (Shenbin et al. 2020): a deep encoder of the whole history and a linear decoder, whose rows are the item vectors."""

import copy
import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medley.heads.sparse import SparseRows

NUM_HIDDEN_LAYERS = 4
"""After the first one; each gets the sum of all before it."""
LAYER_NORM_EPSILON = 0.1
PRIOR_SHARES = (3 / 20, 3 / 4, 1 / 10)
"""Of the standard normal, of the encoder of the epoch before, and of a wide normal: the composite prior."""
WIDE_LOG_VARIANCE = 10.0


class VaeConfig(BaseModel):
    """A variational autoencoder of histories: sees items by number alone; a good part of a blend, since it errs in another way than linear models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vae"] = "vae"
    dimension: int = Field(default=200, ge=1)
    """width of the user's code, and so of the vectors"""
    hidden_dimension: int = Field(default=600, ge=1)
    """width of the encoder's layers"""
    epochs: int = Field(default=36, ge=1)
    """each trains the encoder three times over the users, then the decoder once"""
    batch_size: int = Field(default=500, ge=1)
    """users of a step"""
    learning_rate: float = Field(default=1e-3, gt=0)
    """of Adam"""
    decay_share: float = Field(default=0.4, ge=0, le=1)
    """last share of the epochs in which the rate falls to 0 in a line"""
    dropout: float = Field(default=0.6, ge=0, lt=1)
    """share of a history that the encoder is not shown in training"""
    kl_weight: float = Field(default=0.006, ge=0)
    """weight of the divergence from the prior, per item of the history"""
    user_weight_exponent: float = Field(default=0.2, ge=0)
    """a user with n items counts (n / mean)^-exponent; 0: all count 1, which is n of softmax's terms"""
    metric: str = Field(default="ndcg@20", pattern=r"^(ndcg|recall)@[1-9]\d*$")
    """validation metric that the run reports"""
    cpus_per_worker: float = Field(default=1, gt=0)
    """CPUs of the one process that trains it"""


@dataclass(frozen=True)
class Histories:
    """Items of some users: those of user b are items[offsets[b]:offsets[b + 1]]. items: int64; row_of_entry: b of each."""

    items: Tensor
    offsets: Tensor
    row_of_entry: Tensor

    @classmethod
    def of(cls, history: SparseRows, users: Tensor) -> "Histories":
        """The rows of these users."""
        lengths = history.lengths[users]
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        row_of_entry = torch.repeat_interleave(torch.arange(len(users)), lengths)
        places = torch.arange(int(offsets[-1])) - offsets[row_of_entry] + history.offsets[users][row_of_entry]
        return cls(history.columns[places], offsets[:-1], row_of_entry)

    @property
    def lengths(self) -> Tensor:
        """Items of each user, float32."""
        return torch.bincount(self.row_of_entry, minlength=len(self.offsets)).float()


class HistoryEncoder(nn.Module):
    """1. the history as a vector of length 1 over the catalogue; 2. its product with a matrix; 3. layers with dense connections; 4. mean, log variance."""

    def __init__(self, num_items: int, hidden_dimension: int, dimension: int):
        super().__init__()
        first = nn.Linear(num_items, hidden_dimension)
        # The rows of the history are summed: the same product, without the zeros.
        self.item_rows = nn.Parameter(first.weight.detach().T.contiguous())
        self.bias = nn.Parameter(first.bias.detach())
        self.layers = nn.ModuleList(nn.Linear(hidden_dimension, hidden_dimension) for _ in range(NUM_HIDDEN_LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_dimension, eps=LAYER_NORM_EPSILON) for _ in range(NUM_HIDDEN_LAYERS + 1))
        self.mean, self.log_variance = nn.Linear(hidden_dimension, dimension), nn.Linear(hidden_dimension, dimension)

    def forward(self, histories: Histories, keep_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log variance, (B, D). keep_scale: what each entry is multiplied by (dropout)."""
        entry_weight = histories.lengths.clamp(min=1).rsqrt()[histories.row_of_entry]
        if keep_scale is not None:
            entry_weight = entry_weight * keep_scale
        summed_BH = nn.functional.embedding_bag(histories.items, self.item_rows, histories.offsets, mode="sum", per_sample_weights=entry_weight)
        hidden_BH = self.norms[0](nn.functional.silu(summed_BH + self.bias))
        total_BH = hidden_BH
        for layer, norm in zip(self.layers, list(self.norms)[1:], strict=True):
            hidden_BH = norm(nn.functional.silu(layer(hidden_BH) + total_BH))
            total_BH = total_BH + hidden_BH
        return self.mean(hidden_BH), self.log_variance(hidden_BH)


class RecVae(nn.Module):
    """Encoder, decoder, and the encoder of the epoch before, which is part of the prior."""

    def __init__(self, num_items: int, hidden_dimension: int, dimension: int):
        super().__init__()
        self.encoder = HistoryEncoder(num_items, hidden_dimension, dimension)
        self.decoder = nn.Linear(dimension, num_items)
        self.encoder_before = copy.deepcopy(self.encoder).requires_grad_(False)

    def remember_encoder(self) -> None:
        """Make the encoder as it stands part of the prior."""
        self.encoder_before.load_state_dict(self.encoder.state_dict())

    def loss(self, histories: Histories, dropout: float, kl_weight: float, generator: torch.Generator) -> Tensor:
        """(B,) −Σ_{i ∈ history} ln p(i | z) + kl_weight × n × divergence, with one sample of z."""
        keep_scale = None
        if dropout:
            keep_scale = (torch.rand(len(histories.items), generator=generator) >= dropout).float() / (1 - dropout)
        mean_BD, log_variance_BD = self.encoder(histories, keep_scale)
        code_BD = mean_BD + torch.randn(mean_BD.shape, generator=generator) * (0.5 * log_variance_BD).exp()
        logits_BN = self.decoder(code_BD)
        found = logits_BN[histories.row_of_entry, histories.items]
        likelihood_B = torch.zeros(len(mean_BD)).index_add(0, histories.row_of_entry, found) - histories.lengths * torch.logsumexp(logits_BN, dim=1)
        divergence_B = (_log_normal(code_BD, mean_BD, log_variance_BD) - self._log_prior(histories, code_BD)).sum(dim=1)
        return kl_weight * histories.lengths * divergence_B - likelihood_B

    def _log_prior(self, histories: Histories, code_BD: Tensor) -> Tensor:
        """Logarithm of the composite prior's density, per number of the code."""
        with torch.no_grad():
            before = self.encoder_before(histories)
        zero = torch.zeros(())
        parts = [(zero, zero), before, (zero, torch.tensor(WIDE_LOG_VARIANCE))]
        terms = [_log_normal(code_BD, *part) + math.log(share) for part, share in zip(parts, PRIOR_SHARES, strict=True)]
        return torch.logsumexp(torch.stack(terms), dim=0)


def _log_normal(value: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    return -0.5 * (log_variance + math.log(2 * math.pi) + (value - mean).square() / log_variance.exp())
