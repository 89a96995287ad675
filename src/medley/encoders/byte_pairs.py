"""Subwords: a byte-pair vocabulary learned from the catalogue's texts, and texts as numbers of it."""

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor

PAD, UNKNOWN = "[PAD]", "[UNK]"


def learn_byte_pairs(texts: Iterable[str], vocabulary_size: int) -> dict[str, bytes]:
    """A tokenizer of at most so many subwords, as assets of an encoder. Number 0 is padding, 1 is unknown."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary_size, special_tokens=[PAD, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return {"tokenizer.json": tokenizer.to_str().encode()}


class BytePairs:
    """Texts as subword numbers, at most `max_tokens` each."""

    def __init__(self, tokenizer_json: bytes, max_tokens: int):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_buffer(tokenizer_json)
        self.max_tokens = max_tokens
        self.vocabulary_size: int = self.tokenizer.get_vocab_size()

    def prepare(self, text: str) -> dict[str, Tensor]:
        """(T,) int64; a text without any subword becomes one unknown."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids[: self.max_tokens]
        return {"token_ids": torch.tensor(ids or [1], dtype=torch.int64)}

    def prepare_many(self, texts: Sequence[str]) -> list[dict[str, Tensor]]:
        """`prepare` of each, by one call of the tokenizer, in which other threads run."""
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [encoding.ids[: self.max_tokens] or [1] for encoding in encodings]
        joined = torch.tensor(list(chain.from_iterable(ids)), dtype=torch.int64)
        return [{"token_ids": part} for part in joined.split([len(own) for own in ids])]

    @staticmethod
    def dummy() -> dict[str, Tensor]:
        """One padding token."""
        return {"token_ids": torch.zeros(1, dtype=torch.int64)}


class ReadsBytePairs:
    """What encoders over byte pairs read. Put it before nn.Module."""

    subwords: BytePairs

    def prepare(self, value: str) -> dict[str, Tensor]:
        """Subword numbers, (T,) int64."""
        return self.subwords.prepare(value)

    def prepare_many(self, values: Sequence[str]) -> list[dict[str, Tensor]]:
        """`prepare` of each."""
        return self.subwords.prepare_many(values)

    def dummy(self) -> dict[str, Tensor]:
        """One padding token."""
        return self.subwords.dummy()
