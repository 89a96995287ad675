"""A tiny recommender with a transformers text encoder and an encoder of vectors, and micro-batches for it."""

from pathlib import Path
from typing import Any

import torch

from medley.data.batches import pad_histories
from medley.encoders import stack_inputs
from medley.encoders.features import FeaturesConfig
from medley.encoders.transformer_text import TransformerTextConfig
from medley.model import ModelConfig, RecommenderModel, build_model
from medley.schema import Batch

WORDS = ["[PAD]", "[UNK]", "red", "blue", "round", "loud", "soft", "old"]
TEXTS = ["red round", "blue", "loud old red", "soft", "blue soft old round", "loud"]
NUM_ITEMS, NUM_USERS = len(TEXTS), 4


def write_bert(folder: Path, max_shard_size: str = "20KB", *, dropout: float = 0.0, **sizes: int) -> str:
    """A BERT folder with a tokenizer of whole words. sizes: of its configuration."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModel, BertConfig, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(3)
    # 31 and 7: sizes that 2 ranks do not divide. Without dropout, whose draws differ between micro-batches.
    whole = {"vocab_size": 31, "hidden_size": 14, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 21, "max_position_embeddings": 7}
    config = BertConfig(**{**whole, **sizes}, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    AutoModel.from_config(config, dtype=torch.float32).save_pretrained(folder, max_shard_size=max_shard_size)
    return str(folder)


def build_recommender(folder: str, *, pretrained: bool = True) -> RecommenderModel:
    """MF over the text and a vector of each item; 4 users."""
    encoders = {"text": TransformerTextConfig(path=folder), "vector": FeaturesConfig(column="vector", normalise=False)}
    assets = {"text": encoders["text"].learn([]), "vector": {"statistics.json": b'{"mean": [0.0, 0.0], "deviation": [1.0, 1.0]}'}}
    torch.manual_seed(0)
    return build_model(
        ModelConfig(dimension=6, encoders=encoders, item_id={"dropout": 0.0}),  # type: ignore[arg-type]
        assets,
        train_count_N=torch.arange(1, NUM_ITEMS + 1),
        user_train_count_V=torch.full((NUM_USERS,), 5),
        num_categories={},
        mean_value=0.0,
        pretrained=pretrained,
    )


def make_batch(model: RecommenderModel, users: list[int], items: list[int], *, without_text: bool = False) -> Batch:
    """One micro-batch; row b is of users[b] and items[b]. without_text: no item of it has one."""
    unique = sorted(set(items))
    encoders: Any = model.named_encoders
    texts = [encoders["text"].dummy()] if without_text else [encoders["text"].prepare(TEXTS[item]) for item in unique]
    history_position_BL, history_mask_BL = pad_histories([], torch.tensor(unique).numpy(), len(users))
    return Batch(
        place=(0, 0, 0),
        user_index_B=torch.tensor(users),
        item_position_B=torch.tensor([unique.index(item) for item in items]),
        row_weight_B=torch.ones(len(users)),
        value_B=torch.zeros(len(users)),
        item_index_U=torch.tensor(unique),
        inputs={"text": stack_inputs(texts), "vector": {"features": torch.tensor([[item / 3, 1.0] for item in unique])}},
        present_mask_U={"text": torch.full((len(unique),), not without_text), "vector": torch.ones(len(unique), dtype=torch.bool)},
        known_positive_mask_BU=torch.zeros(len(users), len(unique), dtype=torch.bool),
        history_position_BL=history_position_BL,
        history_mask_BL=history_mask_BL,
    )
