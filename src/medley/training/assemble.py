"""From a checked configuration and a prepared set to the parts of training: assets, model, batches."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from medley.data.batches import BatchMaker
from medley.data.plan import Plan, derive_seed
from medley.data.prepared import PreparedData
from medley.data.shards import ITEMS_PER_SHARD
from medley.data.stream import BatchStream, StreamConfig
from medley.encoders import EncoderConfig
from medley.encoders.logmel_cnn import LogMelCnnConfig
from medley.losses import LossConfig
from medley.model import ModelConfig, RecommenderModel, build_model
from medley.schema import InputError
from medley.training.config import GradientTrainConfig

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
        if isinstance(encoder, LogMelCnnConfig):
            stored_hz = data.manifest["config"]["data"]["media"]["audio_sample_rate_hz"]
            if encoder.sample_rate_hz != stored_hz:
                raise InputError(
                    f"encoder '{name}' expects {encoder.sample_rate_hz} Hz, the prepared clips have {stored_hz} Hz",
                    "one sample rate",
                    f"set model.encoders.{name}.sample_rate_hz={stored_hz}, or prepare again with data.media.audio_sample_rate_hz={encoder.sample_rate_hz}",
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
    """The values of the items that training sees, in item order, one shard in memory at a time."""
    store, warm = data.item_store(), np.flatnonzero(data.train_count_N > 0)
    for start in range(0, len(warm), ITEMS_PER_SHARD):
        values = store.take(warm[start : start + ITEMS_PER_SHARD], [column])[column].to_pylist()
        yield from (value for value in values if value is not None)


def assemble_model(config: ModelConfig, data: PreparedData, assets: Assets, seed: int, *, pretrained: bool) -> RecommenderModel:
    """The model with first weights decided by the seed alone."""
    torch.manual_seed(derive_seed(seed, "init"))
    values = data.train.values
    return build_model(
        config,
        assets,
        train_count_N=torch.from_numpy(data.train_count_N),
        user_train_count_V=torch.from_numpy(data.train_lists.lengths),
        num_categories={column: int(data.user_categories(column).max()) + 1 for column in config.users.columns},
        mean_value=float(np.nanmean(values)) if np.isfinite(values).any() else 0.0,
        pretrained=pretrained,
    )


def make_plan(config: GradientTrainConfig, data: PreparedData, seed: int) -> Plan:
    """The order of the train rows."""
    return Plan(len(data.train), config.micro_batch_size, config.num_micro_batches, seed)


def assemble_stream(model: RecommenderModel, config: ModelConfig, loss: LossConfig, data: PreparedData, plan: Plan, stream: StreamConfig) -> BatchStream:
    """The stream that feeds this model; its encoders prepare their own inputs."""
    maker = BatchMaker.create(
        data,
        plan,
        history_length=config.users.history_length,
        attribute_columns=config.users.columns,
        whole_catalogue=loss.kind == "full_softmax",
    )
    columns = {name: encoder.column for name, encoder in config.encoders.items()}
    return BatchStream(maker, model.named_encoders, columns, stream)
