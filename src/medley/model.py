"""The recommender: encoders → fusion → users → head. `RecommenderModel.forward` reads like that line."""

from collections.abc import Callable, Mapping
from typing import Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medley.encoders import Encoder, EncoderConfig
from medley.fusion import FusionConfig
from medley.fusion.gated import GatedFusionConfig
from medley.heads import HeadConfig
from medley.heads.mf import MatrixFactorisation, MatrixFactorisationConfig
from medley.schema import Batch
from medley.users import UserConfig
from medley.users.id import IdUserConfig


class ItemIdConfig(BaseModel):
    """The free vector e_i of each item that training sees: c_i = W f_i + e_i."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dropout: float = Field(default=0.2, ge=0, lt=1)
    """share of the items of a micro-batch whose free vector is left out in training, so that content alone also works (DropoutNet)"""
    initial_deviation: float = Field(default=0.01, gt=0)
    """standard deviation of the first values"""


class ModelConfig(BaseModel):
    """What is built between the batch and the score."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dimension: int = Field(default=64, ge=1)
    """width of user and item vectors"""
    encoders: dict[str, EncoderConfig] = Field(default_factory=dict)
    """modality name → its encoder; empty: items are their free vectors alone"""
    fusion: FusionConfig = GatedFusionConfig()
    item_id: ItemIdConfig | None = ItemIdConfig()
    """null: no free item vectors, content alone"""
    users: UserConfig = IdUserConfig()
    head: HeadConfig = MatrixFactorisationConfig()


class RecommenderModel(nn.Module):
    """Scores of B users × U items of a micro-batch.

    A buffer says which items training sees: free vectors and biases of the others count as zero.
    """

    train_count_N: Tensor
    is_warm_N: Tensor

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        fusion: nn.Module | None,
        item_id: nn.Module | None,
        users: nn.Module,
        head: MatrixFactorisation,
        *,
        train_count_N: Tensor,
        id_dropout: float,
    ):
        super().__init__()
        assert encoders or item_id is not None
        self.encoders = nn.ModuleDict(encoders)
        self.fusion = fusion
        self.item_id = item_id
        self.users = users
        self.head = head
        self.id_dropout = id_dropout
        self.register_buffer("train_count_N", train_count_N)
        self.register_buffer("is_warm_N", train_count_N > 0)

    @property
    def named_encoders(self) -> dict[str, Encoder]:
        """Modality name → encoder, for the streams that prepare its inputs."""
        return cast(dict[str, Encoder], dict(self.encoders.items()))

    def forward(self, batch: Batch, want: Literal["scores", "items", "users"] = "scores") -> tuple[Tensor, ...]:
        """scores: (scores_BU,). items: (item_vectors_UD, item_bias_U). users: (user_vectors_BD, user_bias_B).

        One entry for all three: ZeRO-3 gathers partitioned weights around this call.
        """
        item_vectors_UD, item_bias_U = self.encode_items(batch)
        if want == "items":
            return item_vectors_UD, item_bias_U
        history_BLD = item_vectors_UD[batch.history_position_BL]
        user_vectors_BD = self.users(batch.user_index_B, batch.attributes_B, history_BLD, batch.history_mask_BL)
        user_bias_B = self.head.user_biases(batch.user_index_B)
        if want == "users":
            return user_vectors_BD, user_bias_B
        return (self.head(user_vectors_BD, item_vectors_UD, user_bias_B, item_bias_U),)

    def encode_items(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """c_i = fusion(encoders(x_i)) + e_i and b_i, for the U items."""
        is_warm_U = self.is_warm_N[batch.item_index_U]
        item_vectors_UD = None
        if self.fusion is not None:
            vectors = {name: place_rows(encode_rows(encoder, batch.inputs[name]), batch.present_mask_U[name]) for name, encoder in self.encoders.items()}
            item_vectors_UD = self.fusion(vectors, batch.present_mask_U)
        if self.item_id is not None:
            kept_U = is_warm_U
            if self.training and self.id_dropout > 0:
                kept_U = is_warm_U & (torch.rand(len(is_warm_U), device=is_warm_U.device) >= self.id_dropout)
            id_vectors_UD = self.item_id(batch.item_index_U) * kept_U.unsqueeze(-1)
            item_vectors_UD = id_vectors_UD if item_vectors_UD is None else item_vectors_UD + id_vectors_UD
        assert item_vectors_UD is not None
        return item_vectors_UD, self.head.item_biases(batch.item_index_U, is_warm_U)


def encode_rows(encoder: Callable[[Mapping[str, Tensor]], Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
    """(P, D) vectors of P rows. The encoder sees up to a sixteenth more rows, of zeros like a dummy's: libraries of kernels prepare one for
    every new shape, and P differs from step to step (measured on a CPU with two small networks: 15 to 20 % of the time)."""
    num_rows = len(next(iter(inputs.values())))
    step = max(1, 2 ** (num_rows.bit_length() - 5))
    num_spare = -num_rows % step
    if num_spare:
        inputs = {name: torch.cat([rows, rows.new_zeros(num_spare, *rows.shape[1:])]) for name, rows in inputs.items()}
    return encoder(inputs)[:num_rows]


def place_rows(vectors_PD: Tensor, present_mask_U: Tensor) -> Tensor:
    """Vectors of the present items at their places among all U, zeros elsewhere. With none present the one (dummy) row counts zero times,
    so that its encoder still takes part in the step."""
    placed_UD = vectors_PD.new_zeros(len(present_mask_U), vectors_PD.shape[1])
    if not present_mask_U.any():
        return placed_UD + 0 * vectors_PD.sum()
    return placed_UD.index_copy(0, present_mask_U.nonzero().squeeze(1), vectors_PD)


def build_model(
    config: ModelConfig,
    assets: Mapping[str, Mapping[str, bytes]],
    *,
    train_count_N: Tensor,
    user_train_count_V: Tensor,
    num_categories: Mapping[str, int],
    mean_value: float,
    pretrained: bool,
) -> RecommenderModel:
    """Build from flat facts of the data. assets: encoder → file name → bytes. pretrained=False: a checkpoint will fill the weights."""
    encoders = {name: encoder.build(assets.get(name, {}), pretrained=pretrained) for name, encoder in config.encoders.items()}
    for name, encoder in encoders.items():
        if config.encoders[name].train == "frozen":
            encoder.requires_grad_(False)
    num_items, num_users = len(train_count_N), len(user_train_count_V)
    item_id = None
    if config.item_id is not None:
        item_id = nn.Embedding(num_items, config.dimension)
        nn.init.normal_(item_id.weight, std=config.item_id.initial_deviation if encoders else 0.1)
    return RecommenderModel(
        encoders,
        config.fusion.build({name: encoder.output_dimension for name, encoder in encoders.items()}, config.dimension) if encoders else None,
        item_id,
        config.users.build(user_train_count_V, num_categories, config.dimension),
        config.head.build(num_users, num_items, mean_value),
        train_count_N=train_count_N,
        id_dropout=config.item_id.dropout if config.item_id and encoders else 0.0,
    )
