"""All items and all users → vectors: the catalogue in chunks, shared out over ranks, every rank calling the model equally often."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from medley.data.batches import ItemInputs
from medley.data.memory import MemoryStream
from medley.data.stream import BatchStream
from medley.index.scorer import Scorer
from medley.schema import Batch

ROWS_PER_CHUNK = 256


@torch.no_grad()
def embed_all(
    forward: Callable[..., tuple[Tensor, ...]], stream: BatchStream | MemoryStream, device: torch.device, global_bias: Tensor, rank: int, num_ranks: int
) -> Scorer:
    """The scorer of the model as it stands (put it in eval mode before). Collective: every rank gets the whole scorer."""
    data = stream.maker.data
    item_chunks = _chunks(data.num_items, rank, num_ranks)
    user_chunks = _chunks(data.num_users, rank, num_ranks)

    def embed_items() -> Iterator[tuple[Tensor, Tensor]]:
        for indices, prepared in zip(item_chunks, stream.items(item_chunks), strict=True):
            vectors_UD, bias_U = forward(_item_batch(stream, indices, prepared).to(device), want="items")
            yield vectors_UD, bias_U

    def embed_users() -> Iterator[tuple[Tensor, Tensor]]:
        for users, prepared in zip(user_chunks, _history_items(stream, user_chunks), strict=True):
            vectors_BD, bias_B = forward(stream.maker.user_batch(users, prepared, stream.encoders).to(device), want="users")
            yield vectors_BD, bias_B

    item_vectors_ND, item_bias_N = _collect(embed_items(), data.num_items, num_ranks)
    user_vectors_VD, user_bias_V = _collect(embed_users(), data.num_users, num_ranks)
    return Scorer(user_vectors_VD, item_vectors_ND, user_bias_V, item_bias_N, global_bias.detach().cpu().float())


def _chunks(count: int, rank: int, num_ranks: int) -> list[np.ndarray]:
    """This rank's chunks; all ranks have equally many (the last chunk is repeated where they would not), since each call may be collective."""
    starts = list(range(0, count, ROWS_PER_CHUNK))
    starts += [starts[-1]] * (-len(starts) % num_ranks)
    return [np.arange(start, min(start + ROWS_PER_CHUNK, count)) for start in starts[rank::num_ranks]]


def _item_batch(stream: BatchStream | MemoryStream, indices: np.ndarray, prepared: ItemInputs) -> Batch:
    nothing, zeros = np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.float32)
    first = np.zeros(1, dtype=np.int64)
    return stream.maker.assemble(
        (0, 0, 0), first, indices[:1].astype(np.int64), indices.astype(np.int64), zeros, zeros, (nothing, nothing), [], prepared, stream.encoders
    )


def _history_items(stream: BatchStream | MemoryStream, user_chunks: list[np.ndarray]) -> Iterator[ItemInputs]:
    """Prepared items of each chunk's histories, and item 0, on which encoders run where there are none."""
    histories = stream.maker.histories
    if histories is None:
        prepared = next(iter(stream.items([np.zeros(1, dtype=np.int32)])))
        return (prepared for _ in user_chunks)
    return stream.items([np.unique(np.concatenate([np.zeros(1, dtype=np.int32), *histories.at_end(users)])) for users in user_chunks])


def _collect(chunks: Iterator[tuple[Tensor, Tensor]], count: int, num_ranks: int) -> tuple[Tensor, Tensor]:
    """Gather every rank's chunks and put them in order: vectors (count, D) and biases (count,) on the CPU."""
    own = [(vectors.float().cpu(), biases.float().cpu()) for vectors, biases in chunks]
    gathered: list[list[tuple[Tensor, Tensor]]] = [own]
    if num_ranks > 1:
        gathered = [[] for _ in range(num_ranks)]
        dist.all_gather_object(gathered, own)
    in_order = [gathered[number % num_ranks][number // num_ranks] for number in range(-(-count // ROWS_PER_CHUNK))]
    return torch.cat([vectors for vectors, _ in in_order]), torch.cat([biases for _, biases in in_order])
