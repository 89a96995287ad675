"""Text by any transformers encoder from a local folder, its token vectors pooled."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medley.encoders.layers import find_blocks
from medley.encoders.pooling import last_real, mean_over
from medley.encoders.transformer_files import TransformerSettings, with_folder
from medley.schema import TEXT

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Pooling = Literal["mean", "cls", "last"]


class TransformerTextConfig(TransformerSettings):
    """A pretrained text encoder (BERT, MiniLM, …)."""

    kind: Literal["transformer_text"] = "transformer_text"
    column: str = TEXT
    """string column"""
    max_tokens: int = Field(default=64, ge=2)
    """longer texts are cut"""
    pooling: Pooling = "mean"
    """of the last layer's vectors: mean over the text's tokens (sentence-transformers: Reimers and Gurevych 2019); cls: the first token's; last: the
    last token's, for models that read from left to right"""

    def learn(self, values: Iterable[str]) -> dict[str, bytes]:
        """Nothing is learned: the folder's configuration and tokenizer files."""
        return self.read_assets("text")

    def make(self, assets: Mapping[str, bytes], *, pretrained: bool) -> "TransformerTextEncoder":
        """The module, with or without the folder's weights."""
        from transformers import AutoTokenizer

        tokenizer = with_folder(assets, lambda folder: AutoTokenizer.from_pretrained(folder, local_files_only=True))
        return TransformerTextEncoder(self.load(assets, {"pooler"}, pretrained=pretrained), tokenizer, self.max_tokens, self.pooling)


class TransformerTextEncoder(nn.Module):
    """The pooled last hidden state."""

    costs_by_length = True

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", max_tokens: int, pooling: Pooling):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.pooling = pooling
        self.output_dimension = model.config.hidden_size

    def blocks(self) -> list[nn.Module]:
        """The model's layers."""
        return find_blocks(self.model)

    def prepare(self, value: str) -> dict[str, Tensor]:
        """Token numbers and their mask, (T,) int64 each."""
        return self.prepare_many([value])[0]

    def prepare_many(self, values: Sequence[str]) -> list[dict[str, Tensor]]:
        """`prepare` of each, by one call of the tokenizer."""
        encoded = self.tokenizer(list(values), truncation=True, max_length=self.max_tokens)["input_ids"]
        return [{"token_ids": torch.tensor(ids, dtype=torch.int64), "token_mask": torch.ones(len(ids), dtype=torch.int64)} for ids in encoded]

    def dummy(self) -> dict[str, Tensor]:
        """One masked token."""
        return {"token_ids": torch.zeros(1, dtype=torch.int64), "token_mask": torch.zeros(1, dtype=torch.int64)}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(P, hidden size)."""
        # A dummy row has no real token; attention over nothing is NaN, so its first position counts as real.
        mask_PT = inputs["token_mask"].clone()
        mask_PT[:, 0] = 1
        hidden_PTD = self.model(input_ids=inputs["token_ids"], attention_mask=mask_PT).last_hidden_state
        if self.pooling == "cls":
            return hidden_PTD[:, 0]
        return mean_over(hidden_PTD, mask_PT) if self.pooling == "mean" else last_real(hidden_PTD, mask_PT)
