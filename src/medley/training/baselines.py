"""What a run is measured beside: popularity, content-kNN, and for synthetic data the oracle."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import load
from torch import Tensor

from medley.data.item_lists import ItemLists
from medley.data.memory import CatalogueVectors
from medley.data.prepared import PreparedData
from medley.index.scorer import Scorer
from medley.manifest import exists, join_uri, read_bytes, read_parquet
from medley.schema import ITEM_ID, USER_ID


def popularity_scorer(data: PreparedData) -> Scorer:
    """Every user gets the items in the order of their train counts."""
    return Scorer.of_items(torch.from_numpy(data.train_count_N), data.num_users)


def unit_vectors(content: CatalogueVectors, train_count_N: np.ndarray) -> Tensor:
    """(N, D) float32 of length 1: each modality's vectors centred on the mean of the train items and scaled to length 1, side by side, the whole
    scaled again, so that a cosine is the mean over modalities where both items have all of them. An item without any modality: zeros.

    Uncentred vectors of an encoder share a large common part, which makes all items alike (on cold items of MovieLens NDCG@10 was .097
    with raw MiniLM vectors, .203 with centred ones).
    """
    parts = []
    for name, vectors_ND in content.vectors_ND.items():
        present_mask_N = torch.from_numpy(content.present_mask_N[name])
        is_seen_N = present_mask_N & torch.from_numpy(train_count_N > 0)
        vectors = torch.from_numpy(np.array(vectors_ND))
        centred_ND = vectors - (vectors[is_seen_N].mean(dim=0) if is_seen_N.any() else 0)
        parts.append(torch.nn.functional.normalize(centred_ND, dim=1) * present_mask_N[:, None])
    return torch.nn.functional.normalize(torch.cat(parts, dim=1), dim=1)


@dataclass(frozen=True)
class ContentKnn:
    """Scores an item by its mean cosine to the most similar items that the user had: nothing is learned from other users.

    unit_vectors_ND: see `unit_vectors`. history: the users' train and given items. num_neighbours: how many of them count.
    A user without history gets all items alike, so the order of their indices.
    """

    unit_vectors_ND: Tensor
    history: ItemLists
    num_neighbours: int

    @classmethod
    def of(cls, unit_vectors_ND: Tensor, data: PreparedData, given: ItemLists, num_neighbours: int) -> Self:
        """For the users of a prepared set and what they are given."""
        rows, items = (np.concatenate(part) for part in zip(*(lists.pairs(np.arange(data.num_users)) for lists in (data.train_lists, given)), strict=True))
        return cls(unit_vectors_ND, ItemLists.from_pairs(rows, items, data.num_users), num_neighbours)

    def scores(self, users: np.ndarray) -> Tensor:
        """(B, N) float32 in [-1, 1]."""
        lengths_B = self.history.lengths[users]
        # Longest first: at each place of the histories, the users who have an item there are the first ones.
        order = np.argsort(-lengths_B, kind="stable")
        in_order = users[order]
        known = np.unique(self.history.pairs(in_order)[1])
        cosines_LN = self.unit_vectors_ND[torch.from_numpy(known.astype(np.int64))] @ self.unit_vectors_ND.T
        num_items = len(self.unit_vectors_ND)
        best_KBN = torch.full((self.num_neighbours, len(users), num_items), -torch.inf)
        for place in range(int(lengths_B.max(initial=0))):
            num_longer = int((lengths_B > place).sum())
            items = self.history.items[self.history.offsets[in_order[:num_longer]] + place]
            new_BN = cosines_LN[torch.from_numpy(np.searchsorted(known, items))]
            for best_BN in best_KBN[: place + 1, :num_longer]:
                # The larger stays, the smaller goes down to the next place: K comparisons keep the K largest in order.
                smaller_BN = torch.minimum(best_BN, new_BN)
                torch.maximum(best_BN, new_BN, out=best_BN)
                new_BN = smaller_BN
        num_counted_B1 = torch.from_numpy(np.clip(lengths_B[order], 1, self.num_neighbours))[:, None]
        means_BN = best_KBN.masked_fill_(best_KBN == -torch.inf, 0).sum(dim=0) / num_counted_B1
        return means_BN[torch.from_numpy(np.argsort(order))]


def oracle_scorer(tables_uri: str, data: PreparedData) -> Scorer | None:
    """The true scores of synthetic data, in this prepared set's order; None for data that do not come with them."""
    truth_uri = join_uri(tables_uri, "truth")
    if not exists(truth_uri):
        return None
    tensors = load(read_bytes(join_uri(truth_uri, "scorer.safetensors")))
    items = _places(read_parquet(join_uri(truth_uri, "items.parquet"))[ITEM_ID], data.item_facts[ITEM_ID])
    users = _places(read_parquet(join_uri(truth_uri, "users.parquet"))[USER_ID], data.users[USER_ID])
    return Scorer(
        tensors["user_vectors_VD"][users].float(),
        tensors["item_vectors_ND"][items].float(),
        tensors["user_bias_V"][users].float(),
        tensors["item_bias_N"][items].float(),
        tensors["global_bias"].float(),
    )


def read_feature_columns(data: PreparedData) -> CatalogueVectors:
    """The vectors that the items came with: every fixed-size list of numbers among the columns; none is an empty result."""
    vectors: dict[str, np.ndarray] = {}
    present: dict[str, np.ndarray] = {}
    store, everything = data.item_store(), np.arange(data.num_items)
    for name in _vector_columns(data):
        column = store.take(everything, [name])[name].combine_chunks()
        present[name] = column.is_valid().to_numpy(zero_copy_only=False)
        vectors[name] = np.zeros((data.num_items, column.type.list_size), dtype=np.float32)
        vectors[name][present[name]] = column.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
    return CatalogueVectors(vectors, present)


def _vector_columns(data: PreparedData) -> list[str]:
    """Columns of fixed-size lists among those of the shards (attributes stand in the facts)."""
    names = [name for name in data.columns if name not in data.item_facts.column_names]
    schema = data.item_store().take(np.zeros(1, dtype=np.int64), names).schema if names else pa.schema([])
    return [name for name in names if pa.types.is_fixed_size_list(schema.field(name).type)]


def _places(known: pa.ChunkedArray, wanted: pa.ChunkedArray) -> torch.Tensor:
    places = pc.index_in(wanted, value_set=known.combine_chunks())
    assert places.null_count == 0
    return torch.from_numpy(places.to_numpy().astype(np.int64))
