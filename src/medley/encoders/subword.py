"""Text from scratch: byte-pair subwords learned from the catalogue, their vectors averaged (fastText: Joulin et al. 2017)."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medley.encoders.settings import TrainableSettings
from medley.schema import TEXT

PAD, UNKNOWN = "[PAD]", "[UNK]"


class SubwordConfig(TrainableSettings):
    """A light text encoder; no weights needed."""

    kind: Literal["subword"] = "subword"
    column: str = TEXT
    """string column"""
    vocabulary_size: int = Field(default=8000, ge=16)
    """most subwords to learn"""
    dimension: int = Field(default=64, ge=1)
    """width of the vectors"""
    max_tokens: int = Field(default=64, ge=1)
    """longer texts are cut"""

    def learn(self, values: Iterable[str]) -> dict[str, bytes]:
        """A byte-pair tokenizer of the train items' texts."""
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.BpeTrainer(vocab_size=self.vocabulary_size, special_tokens=[PAD, UNKNOWN], show_progress=False)
        tokenizer.train_from_iterator(values, trainer)
        return {"tokenizer.json": tokenizer.to_str().encode()}

    def build(self, assets: Mapping[str, bytes], *, pretrained: bool) -> "SubwordEncoder":
        """The module over the learned vocabulary."""
        return SubwordEncoder(assets["tokenizer.json"], self.dimension, self.max_tokens)


class SubwordEncoder(nn.Module):
    """Mean of the subword vectors, then a layer norm."""

    def __init__(self, tokenizer_json: bytes, dimension: int, max_tokens: int):
        super().__init__()
        from tokenizers import Tokenizer

        self.output_dimension = dimension
        self.max_tokens = max_tokens
        self.tokenizer = Tokenizer.from_buffer(tokenizer_json)
        self.embedding = nn.Embedding(self.tokenizer.get_vocab_size(), dimension, padding_idx=0)
        self.norm = nn.LayerNorm(dimension)

    def prepare(self, value: str) -> dict[str, Tensor]:
        """Subword numbers, (T,) int64; a text without any becomes one unknown."""
        ids = self.tokenizer.encode(value, add_special_tokens=False).ids[: self.max_tokens]
        return {"token_ids": torch.tensor(ids or [1], dtype=torch.int64)}

    def prepare_many(self, values: Sequence[str]) -> list[dict[str, Tensor]]:
        """`prepare` of each, by one call of the tokenizer, in which other threads run."""
        encodings = self.tokenizer.encode_batch_fast(list(values), add_special_tokens=False)
        ids = [encoding.ids[: self.max_tokens] or [1] for encoding in encodings]
        joined = torch.tensor(list(chain.from_iterable(ids)), dtype=torch.int64)
        return [{"token_ids": part} for part in joined.split([len(own) for own in ids])]

    def dummy(self) -> dict[str, Tensor]:
        """One padding token."""
        return {"token_ids": torch.zeros(1, dtype=torch.int64)}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(P, D); padding does not count."""
        token_ids_PT = inputs["token_ids"]
        real_PT1 = (token_ids_PT != 0).unsqueeze(-1).float()
        mean_PD = (self.embedding(token_ids_PT) * real_PT1).sum(dim=1) / real_PT1.sum(dim=1).clamp(min=1)
        return self.norm(mean_PD)
