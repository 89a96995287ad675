"""Text from scratch: byte-pair subwords learned from the catalogue, their vectors averaged (fastText: Joulin et al. 2017)."""

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from medley.encoders.byte_pairs import BytePairs, ReadsBytePairs, learn_byte_pairs
from medley.encoders.settings import TrainableSettings
from medley.schema import TEXT


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
        return learn_byte_pairs(values, self.vocabulary_size)

    def make(self, assets: Mapping[str, bytes], *, pretrained: bool) -> "SubwordEncoder":
        """The module over the learned vocabulary."""
        return SubwordEncoder(BytePairs(assets["tokenizer.json"], self.max_tokens), self.dimension)


class SubwordEncoder(ReadsBytePairs, nn.Module):
    """Mean of the subword vectors, then a layer norm."""

    def __init__(self, subwords: BytePairs, dimension: int):
        super().__init__()
        self.output_dimension = dimension
        self.max_tokens = subwords.max_tokens
        self.subwords = subwords
        self.embedding = nn.Embedding(subwords.vocabulary_size, dimension, padding_idx=0)
        self.norm = nn.LayerNorm(dimension)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(P, D); padding does not count."""
        token_ids_PT = inputs["token_ids"]
        real_PT1 = (token_ids_PT != 0).unsqueeze(-1).float()
        mean_PD = (self.embedding(token_ids_PT) * real_PT1).sum(dim=1) / real_PT1.sum(dim=1).clamp(min=1)
        return self.norm(mean_PD)
