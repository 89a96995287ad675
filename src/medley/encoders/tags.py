"""Tags: the weighted mean of learned tag vectors, c_i = Σ_j v_ij t_j / Σ_j v_ij."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medley.encoders.settings import TrainableSettings


class TagsConfig(TrainableSettings):
    """Tags of a list column."""

    kind: Literal["tags"] = "tags"
    column: str
    """list<string> column"""
    dimension: int = Field(default=32, ge=1)
    """width of the vectors"""
    min_items: int = Field(default=2, ge=1)
    """rarer tags are left out, as are tags first seen after training"""

    def learn(self, values: Iterable[Sequence[str]]) -> dict[str, bytes]:
        """The vocabulary: tags of at least `min_items` train items, most frequent first, ties by name."""
        counts = Counter(tag for tags in values for tag in set(tags) if tag is not None)
        kept = [tag for tag, count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])) if count >= self.min_items]
        return {"vocabulary.json": json.dumps(kept, ensure_ascii=False).encode()}

    def make(self, assets: Mapping[str, bytes], *, pretrained: bool) -> "TagsEncoder":
        """The module over the learned vocabulary."""
        return TagsEncoder(json.loads(assets["vocabulary.json"]), self.dimension)


class TagsEncoder(nn.Module):
    """Number 0 is padding; an item whose tags are all unknown gets the zero vector."""

    def __init__(self, vocabulary: Sequence[str], dimension: int):
        super().__init__()
        self.output_dimension = dimension
        self.number_of_tag = {tag: number for number, tag in enumerate(vocabulary, start=1)}
        self.embedding = nn.Embedding(len(vocabulary) + 1, dimension, padding_idx=0)

    def prepare(self, value: Sequence[str]) -> dict[str, Tensor]:
        """Tag numbers, (T,) int64; unknown tags are ignored."""
        numbers = [self.number_of_tag[tag] for tag in value if tag in self.number_of_tag]
        return {"tag_ids": torch.tensor(numbers or [0], dtype=torch.int64)}

    def dummy(self) -> dict[str, Tensor]:
        """One padding tag."""
        return {"tag_ids": torch.zeros(1, dtype=torch.int64)}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(P, D)."""
        tag_ids_PT = inputs["tag_ids"]
        real_PT1 = (tag_ids_PT != 0).unsqueeze(-1).float()
        return (self.embedding(tag_ids_PT) * real_PT1).sum(dim=1) / real_PT1.sum(dim=1).clamp(min=1)
