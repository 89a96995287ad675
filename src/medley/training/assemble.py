"""From a checked configuration and a prepared set to the parts of training: assets, model, batches."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from medley.data.batches import BatchMaker
from medley.data.memory import CatalogueVectors, MemoryStream
from medley.data.plan import Plan, derive_seed
from medley.data.prepared import PreparedData
from medley.data.sampling import PopularitySampling
from medley.data.stream import BatchStream, StreamConfig
from medley.encoders import EncoderConfig, ReadsSound
from medley.heads.neighbours import nearest_items
from medley.losses import LossConfig
from medley.model import ModelConfig, RecommenderModel, build_model
from medley.schema import InputError
from medley.training.config import GradientTrainConfig
from medley.training.sharded_table import make_sharded
from medley.users.table import MakeTable, dense_table

logger = logging.getLogger(__name__)

Assets = dict[str, dict[str, bytes]]
"""encoder → file name → content"""


def check_model(config: ModelConfig, loss: LossConfig, data: PreparedData) -> None:
    """Refuse a configuration that asks for what the data lack, before anything is started."""
    for name, encoder in config.encoders.items():
        if encoder.column not in data.columns:
            raise InputError(
                f"encoder '{name}' reads column '{encoder.column}', the prepared items have {', '.join(data.columns)}",
                "a column of the items table",
                "correct model.encoders, or add the column to the tables",
            )
        if isinstance(encoder, ReadsSound):
            read_hz, stored_hz = encoder.reads_sample_rate_hz(), data.manifest["config"]["data"]["media"]["audio_sample_rate_hz"]
            if read_hz != stored_hz:
                here = f"set model.encoders.{name}.sample_rate_hz={stored_hz}, or " if hasattr(encoder, "sample_rate_hz") else ""
                raise InputError(
                    f"encoder '{name}' expects {read_hz} Hz, the prepared clips have {stored_hz} Hz",
                    "one sample rate",
                    f"{here}prepare again with data.media.audio_sample_rate_hz={read_hz}",
                )
    for column in config.users.columns:
        if column not in data.users.column_names:
            raise InputError(
                f"model.users reads column '{column}', the users table has {', '.join(data.users.column_names)}",
                "a column of the users table",
                "correct model.users, or add the column to the tables",
            )
    if not config.encoders and config.item_id is None:
        raise InputError("model has neither encoders nor item_id", "at least one of them", "add model.encoders, or leave model.item_id out")
    if loss.kind == "mse" and not np.isfinite(data.train.values).any():
        raise InputError("loss.kind is mse, but the interactions have no values", "a filled column 'value'", "use a softmax loss")


def learn_assets(encoders: Mapping[str, EncoderConfig], data: PreparedData) -> Assets:
    """Vocabularies and statistics of each encoder, learned from the train items alone."""
    return {name: encoder.learn(_train_values(data, encoder.column)) for name, encoder in encoders.items()}


def _train_values(data: PreparedData, column: str) -> Iterable[Any]:
    """The values of the items that training sees, in item order, a few hundred in memory at a time."""
    store, warm = data.item_store(), np.flatnonzero(data.train_count_N > 0)
    for table in store.iterate(warm, [column]):
        yield from (value for value in table[column].to_pylist() if value is not None)


def table_maker(config: GradientTrainConfig, seed: int, rank: int, num_ranks: int, device: torch.device, dtype: torch.dtype = torch.float32) -> MakeTable:
    """How a training's tables of users and items are made. seed: of the run. dtype: that the model computes in."""
    if config.optimizer.table_update == "adamw":
        return dense_table
    return make_sharded(config.optimizer.table_update, seed, rank, num_ranks, device, dtype)


def assemble_model(
    config: ModelConfig,
    data: PreparedData,
    assets: Assets,
    seed: int,
    *,
    pretrained: bool,
    vectors: CatalogueVectors | None = None,
    table: MakeTable = dense_table,
) -> RecommenderModel:
    """The model with first weights decided by the seed alone. vectors: of the encoders that are read and not run. table: see `table_maker`."""
    torch.manual_seed(derive_seed(seed, "init"))
    train = data.train
    return build_model(
        config,
        assets,
        train_count_N=torch.from_numpy(data.train_count_N),
        user_train_count_V=torch.from_numpy(data.train_lists.lengths),
        num_categories={column: int(data.user_categories(column).max()) + 1 for column in config.users.columns},
        mean_value=float(np.nanmean(train.values)) if np.isfinite(train.values).any() else 0.0,
        pretrained=pretrained,
        cached=vectors.widths if vectors is not None else None,
        neighbours_NK=_neighbours(config, data, vectors) if vectors is not None else None,
        train_pairs=(torch.from_numpy(train.users).long(), torch.from_numpy(train.items).long()) if config.propagation is not None else None,
        table=table,
    )


def _neighbours(config: ModelConfig, data: PreparedData, vectors: CatalogueVectors) -> torch.Tensor | None:
    """The item graph, of the encoders with `cache: true` alone: trials have the vectors of the others too, the run that follows has not."""
    if config.item_id is None or config.item_id.neighbours is None:
        return None
    names = [name for name, encoder in config.encoders.items() if encoder.cache]
    vectors_ND, present_mask_N = ({name: part[name] for name in names} for part in (vectors.vectors_ND, vectors.present_mask_N))
    return nearest_items(vectors_ND, present_mask_N, data.train_count_N > 0, config.item_id.neighbours.num_neighbours)


def make_plan(config: GradientTrainConfig, data: PreparedData, seed: int) -> Plan:
    """The order of the train rows."""
    exponent = config.popularity_exponent
    sampling = PopularitySampling(data.train.items, data.train_count_N, exponent) if exponent else None
    return Plan(len(data.train), config.micro_batch_size, config.num_micro_batches, seed, sampling)


def assemble_stream(
    model: RecommenderModel,
    config: ModelConfig,
    loss: LossConfig,
    data: PreparedData,
    plan: Plan,
    stream: StreamConfig,
    vectors: CatalogueVectors | None = None,
    num_ranks: int = 1,
) -> BatchStream | MemoryStream:
    """The stream that feeds this model: its encoders prepare their own inputs; those that are read and not run have their vectors here.

    num_ranks: workers, whose items are pooled where the loss wants that.
    """
    maker = BatchMaker.create(
        data,
        plan,
        history_length=config.users.history_length,
        attribute_columns=config.users.columns,
        whole_catalogue=loss.kind == "full_softmax",
        num_uniform_negatives=loss.num_uniform_negatives,
        num_pooled_ranks=num_ranks if loss.kind == "in_batch_softmax" and loss.across_ranks else 1,
    )
    running = {name: encoder for name, encoder in model.named_encoders.items() if vectors is None or name not in vectors.vectors_ND}
    columns = {name: config.encoders[name].column for name in running}
    if vectors is None:
        return BatchStream(maker, running, columns, stream)
    return MemoryStream(maker, model.named_encoders, vectors, BatchStream(maker, running, columns, stream) if running else None)
