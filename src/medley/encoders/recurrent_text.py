"""Text from scratch with word order: byte-pair subwords learned from the catalogue, read by a GRU or LSTM."""

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from medley.encoders.byte_pairs import BytePairs, ReadsBytePairs, learn_byte_pairs
from medley.encoders.recurrent import Cell, RecurrentNetwork, RecurrentPooling
from medley.encoders.settings import TrainableSettings
from medley.schema import TEXT


class RecurrentTextConfig(TrainableSettings):
    """A text encoder from scratch; no weights needed."""

    kind: Literal["recurrent_text"] = "recurrent_text"
    column: str = TEXT
    """string column"""
    vocabulary_size: int = Field(default=8000, ge=16)
    """most subwords to learn"""
    dimension: int = Field(default=64, ge=1)
    """width of the subword vectors"""
    max_tokens: int = Field(default=64, ge=1)
    """longer texts are cut"""
    cell: Cell = "gru"
    """gru or lstm"""
    width: int = Field(default=64, ge=1)
    """of a direction's states; the text's vector is twice as wide"""
    num_layers: int = Field(default=1, ge=1)
    """of each direction"""
    pooling: RecurrentPooling = "mean"
    """of the states: mean over the text, or each direction's last"""

    def learn(self, values: Iterable[str]) -> dict[str, bytes]:
        """A byte-pair tokenizer of the train items' texts."""
        return learn_byte_pairs(values, self.vocabulary_size)

    def make(self, assets: Mapping[str, bytes], *, pretrained: bool) -> "RecurrentTextEncoder":
        """The module over the learned vocabulary."""
        network = RecurrentNetwork(self.dimension, self.width, self.num_layers, self.cell, self.pooling)
        return RecurrentTextEncoder(BytePairs(assets["tokenizer.json"], self.max_tokens), self.dimension, network)


class RecurrentTextEncoder(ReadsBytePairs, nn.Module):
    """Subword vectors, then the recurrent network."""

    def __init__(self, subwords: BytePairs, dimension: int, network: RecurrentNetwork):
        super().__init__()
        self.subwords = subwords
        self.max_tokens = subwords.max_tokens
        self.embedding = nn.Embedding(subwords.vocabulary_size, dimension, padding_idx=0)
        self.network = network
        self.output_dimension = network.output_dimension

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(P, 2 × width); padding does not count."""
        token_ids_PT = inputs["token_ids"]
        return self.network(self.embedding(token_ids_PT), token_ids_PT != 0)
