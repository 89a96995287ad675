"""The recommender: encoders → fusion → users → head. `RecommenderModel.forward` reads like that line."""

from collections.abc import Callable, Mapping
from typing import Literal, Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from medley.encoders import Encoder, EncoderConfig
from medley.encoders.cached import CachedEncoder
from medley.encoders.frozen import build_frozen
from medley.encoders.lengths import encode_by_length, encode_padded
from medley.fusion import FusionConfig
from medley.fusion.gated import GatedFusionConfig
from medley.fusion.weights import modality_weights
from medley.heads import Head, HeadConfig
from medley.heads.light_graph import LightGraph, LightGraphConfig
from medley.heads.mf import MatrixFactorisationConfig
from medley.heads.neighbours import NeighbourMean, NeighboursConfig
from medley.losses.across_ranks import pooled_items
from medley.schema import Batch
from medley.users import UserConfig
from medley.users.fields import one_field
from medley.users.id import IdUserConfig
from medley.users.table import MakeTable, dense_table


class ItemIdConfig(BaseModel):
    """The free vector e_i of each item that training sees: c_i = W f_i + e_i."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dropout: float = Field(default=0.2, ge=0, lt=1)
    """share of the items of a micro-batch whose free vector is left out in training, so that content alone also works (DropoutNet)"""
    initial_deviation: float = Field(default=0.01, gt=0)
    """standard deviation of the first values"""
    neighbours: NeighboursConfig | None = None
    """add the mean of the free vectors of similar items, by content: items that training does not see get one too; null: no such graph"""


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
    propagation: LightGraphConfig | None = None
    """average the free vectors of users and items with those of their neighbours in the interactions (LightGCN); null: take them as they are"""

    @model_validator(mode="after")
    def _check_graphs(self) -> Self:
        if self.item_id is not None and self.item_id.neighbours is not None and not any(encoder.cache for encoder in self.encoders.values()):
            raise ValueError("an encoder with cache: true where item_id.neighbours is set, whose vectors are there before training begins")
        if self.propagation is not None and (self.users.kind != "id" or self.item_id is None):
            raise ValueError("users.kind id and item_id, whose vectors propagation spreads")
        return self

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if self.fusion.kind == "late" and self.dimension < len(self.encoders):
            raise ValueError(f"a dimension of {len(self.encoders)} or more: fusion 'late' gives each encoder columns of its own")
        for part in (self.fusion, self.users, *getattr(self.users, "parts", ())):
            num_heads = getattr(part, "num_heads", 1)
            if self.dimension % num_heads:
                raise ValueError(f"a dimension that num_heads={num_heads} of kind '{part.kind}' divides")
        return self


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
        head: Head,
        *,
        neighbours: NeighbourMean | None,
        propagation: LightGraph | None,
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
        self.neighbours = neighbours
        self.propagation = propagation
        self.id_dropout = id_dropout
        self.register_buffer("train_count_N", train_count_N)
        self.register_buffer("is_warm_N", train_count_N > 0)

    @property
    def named_encoders(self) -> dict[str, Encoder]:
        """Modality name → encoder, for the streams that prepare its inputs."""
        return cast(dict[str, Encoder], dict(self.encoders.items()))

    def forward(self, batch: Batch, want: Literal["scores", "items", "users"] = "scores") -> tuple[Tensor, ...]:
        """scores: what losses read (`losses.ModelOutput`). items: (item_vectors_UD, item_bias_U). users: (user_vectors_BD, user_bias_B).

        One entry for all three: ZeRO-3 gathers partitioned weights around this call.
        """
        user_table_VD, item_table_ND = self.propagation(self.users.embedding, self.item_id) if self.propagation is not None else (None, None)
        item_vectors_UD, item_bias_U, item_fields_UFD, tokens_UMD, present_UM = self.encode_items(batch, item_table_ND)
        if want == "items":
            return item_vectors_UD, item_bias_U
        if user_table_VD is not None:
            user_fields_BFD, penalty_B = one_field(user_table_VD[batch.user_index_B])
        else:
            history_BLD = item_fields_UFD.sum(dim=1)[batch.history_position_BL]
            history_index_BL = batch.item_index_U[batch.history_position_BL]
            user_fields_BFD, penalty_B = self.users(batch.user_index_B, batch.attributes_B, history_BLD, history_index_BL, batch.history_mask_BL)
        user_vectors_BD, user_bias_B = self.head.user_side(user_fields_BFD, batch.user_index_B)
        if want == "users":
            return user_vectors_BD, user_bias_B
        if batch.pool is not None:
            item_vectors_UD, item_bias_U = pooled_items(item_vectors_UD, item_bias_U, batch.pool)
        return self.head(user_vectors_BD, item_vectors_UD, user_bias_B, item_bias_U), penalty_B, tokens_UMD, present_UM

    def encode_items(self, batch: Batch, item_table_ND: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Of the U items: vectors and biases as the head has them, their fields (content, free vector, those of similar items), modality tokens and
        their presence. item_table_ND: free vectors that were propagated."""
        is_warm_U = self.is_warm_N[batch.item_index_U]
        num_items = len(is_warm_U)
        tokens_UMD, present_UM = torch.zeros(num_items, 0, 0, device=is_warm_U.device), is_warm_U.new_zeros(num_items, 0)
        fields = []
        if self.fusion is not None:
            content_UD, tokens_UMD, present_UM = self.fusion(self.modality_vectors(batch), batch.present_mask_U)
            fields.append(content_UD)
        if self.item_id is not None:
            kept_U = is_warm_U
            if self.training and self.id_dropout > 0:
                kept_U = is_warm_U & (torch.rand(num_items, device=is_warm_U.device) >= self.id_dropout)
            own_UD = self.item_id(batch.item_index_U) if item_table_ND is None else item_table_ND[batch.item_index_U]
            fields.append(own_UD * kept_U.unsqueeze(-1))
        if self.neighbours is not None:
            fields.append(self.neighbours(self.item_id, batch.item_index_U))
        fields_UFD = torch.stack(fields, dim=1)
        vectors_UD, bias_U = self.head.item_side(fields_UFD, batch.item_index_U, is_warm_U)
        return vectors_UD, bias_U, fields_UFD, tokens_UMD, present_UM

    def modality_vectors(self, batch: Batch) -> dict[str, Tensor]:
        """modality → vectors (U, D_m), zeros where an item lacks it."""
        return {name: place_rows(encode_rows(encoder, batch.inputs[name]), batch.present_mask_U[name]) for name, encoder in self.encoders.items()}

    @torch.no_grad()
    def modality_weights(self, batch: Batch) -> Tensor:
        """The share of each modality, in the order of the sorted names, in the content of the U items, (U, M): see `fusion/weights.py`.

        For explanations: in eval mode and outside ZeRO-3.
        """
        assert self.fusion is not None
        return modality_weights(self.fusion, self.modality_vectors(batch), batch.present_mask_U)


def encode_rows(encoder: Callable[[Mapping[str, Tensor]], Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
    """(P, D) vectors of P rows, in one call or, on CPUs, of texts a call for each length. Where ZeRO-3 has sharded the encoder, every call would gather
    its weights anew, and ranks must make equally many: one. Frozen encoders see to lengths and shapes themselves."""
    if getattr(encoder, "is_frozen", False):
        return encoder(inputs)
    is_sharded = isinstance(encoder, nn.Module) and any(hasattr(parameter, "ds_tensor") for parameter in encoder.parameters())
    if getattr(encoder, "costs_by_length", False) and not is_sharded and all(values.device.type == "cpu" for values in inputs.values()):
        return encode_by_length(encoder, inputs)
    return encode_padded(encoder, inputs)


def place_rows(vectors_PD: Tensor, present_mask_U: Tensor) -> Tensor:
    """Vectors of the present items at their places among all U, zeros elsewhere. With none present the one (dummy) row counts zero times,
    so that its encoder still takes part in the step. The number of rows is known: a GPU need not be asked how many are present."""
    rows_P = torch.nonzero_static(present_mask_U, size=len(vectors_PD), fill_value=0).squeeze(1)
    kept_PD = vectors_PD * present_mask_U[rows_P].unsqueeze(-1)
    return vectors_PD.new_zeros(len(present_mask_U), vectors_PD.shape[1]).index_copy(0, rows_P, kept_PD)


def build_model(
    config: ModelConfig,
    assets: Mapping[str, Mapping[str, bytes]],
    *,
    train_count_N: Tensor,
    user_train_count_V: Tensor,
    num_categories: Mapping[str, int],
    mean_value: float,
    pretrained: bool,
    cached: Mapping[str, int] | None = None,
    neighbours_NK: Tensor | None = None,
    train_pairs: tuple[Tensor, Tensor] | None = None,
    table: MakeTable = dense_table,
) -> RecommenderModel:
    """Build from flat facts of the data. assets: encoder → file name → bytes. pretrained=False: a checkpoint will fill the weights.

    cached: encoder → width of its vectors, for those whose vectors the batches bring from the feature cache. neighbours_NK: the item graph (see
    heads/neighbours.py; None: a checkpoint will fill it). train_pairs: users and items of the train interactions, for propagation. table: makes the
    tables of users and items.
    """
    encoders = {name: _build_encoder(encoder, assets.get(name, {}), (cached or {}).get(name), pretrained) for name, encoder in config.encoders.items()}
    widths = {name: int(encoder.output_dimension) for name, encoder in encoders.items()}  # type: ignore[arg-type]  # every encoder has this number
    num_items, num_users = len(train_count_N), len(user_train_count_V)
    item_id = None
    if config.item_id is not None:
        item_id = table(num_items, config.dimension, config.item_id.initial_deviation if encoders else 0.1)
    neighbours = propagation = None
    if config.item_id is not None and config.item_id.neighbours is not None:
        num_neighbours = config.item_id.neighbours.num_neighbours
        neighbours = NeighbourMean(neighbours_NK if neighbours_NK is not None else torch.full((num_items, num_neighbours), -1, dtype=torch.int32))
    if config.propagation is not None:
        users, items = train_pairs if train_pairs is not None else (torch.zeros(0, dtype=torch.int64),) * 2
        propagation = LightGraph(users, items, num_users, num_items, config.propagation.num_layers)
    return RecommenderModel(
        encoders,
        config.fusion.build(widths, config.dimension) if encoders else None,
        item_id,
        config.users.build(user_train_count_V, num_categories, num_items, config.dimension, table),
        config.head.build(num_users, num_items, config.dimension, mean_value, table),
        neighbours=neighbours,
        propagation=propagation,
        train_count_N=train_count_N,
        id_dropout=config.item_id.dropout if config.item_id and encoders else 0.0,
    )


def _build_encoder(config: EncoderConfig, assets: Mapping[str, bytes], cached_width: int | None, pretrained: bool) -> nn.Module:
    if cached_width is not None:
        return CachedEncoder(cached_width)
    return build_frozen(config, assets, pretrained=pretrained) if config.train == "frozen" else config.build(assets, pretrained=pretrained)
