"""Small bundles and Serve's HTTP door, shared by the tests of this folder."""

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from medley.bundle import write_bundle
from medley.data.item_lists import ItemLists
from medley.index.scorer import Scorer


def write(folder: Path, scorer: Scorer, item_ids: list[str], user_ids: list[str], train_counts: list[int], seen: ItemLists, name: str) -> str:
    """A bundle with these parts and nothing of a model."""
    items = pa.table(
        {
            "item_index": pa.array(range(len(item_ids)), pa.int32()),
            "item_id": item_ids,
            "title": [f"Title {item_id}" for item_id in item_ids],
            "train_count": pa.array(train_counts, pa.int64()),
        }
    )
    users = pa.table({"user_index": pa.array(range(len(user_ids)), pa.int32()), "user_id": user_ids})
    uri = str(folder / name)
    write_bundle(
        uri,
        scorer=scorer,
        items=items,
        users=users,
        seen=seen,
        metrics={"ndcg@10": 0.5},
        config={"name": name},
        model_files={"model.safetensors": b"weights"},
        identity=f"{name:0<16}",
        parents={"prepared": "0123456789abcdef"},
    )
    return uri


@pytest.fixture(scope="session")
def hand_bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six items and three users in two dimensions, for rankings worked out on paper."""
    scorer = Scorer(
        user_vectors_VD=torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]),
        item_vectors_ND=torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0], [2.0, 1.0], [0.0, 0.0]]),
        user_bias_V=torch.tensor([0.5, 0.0, 0.0]),
        item_bias_N=torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.5]),
        global_bias=torch.tensor(0.25),
    )
    seen = ItemLists.from_pairs(np.array([0, 0, 1]), np.array([0, 3, 1]), num_users=3)
    return write(tmp_path_factory.mktemp("hand"), scorer, list("abcdef"), ["ann", "bob", "cid"], [5, 4, 3, 2, 0, 1], seen, "hand")


@pytest.fixture(scope="session")
def random_bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """300 items and 120 users in 16 dimensions; every item stands there twice, so that each score is tied."""
    generator = torch.Generator().manual_seed(7)
    half_ND = torch.randn(150, 16, generator=generator)
    half_N = torch.randn(150, generator=generator)
    scorer = Scorer(
        user_vectors_VD=torch.randn(120, 16, generator=generator),
        item_vectors_ND=torch.cat([half_ND, half_ND]),
        user_bias_V=torch.randn(120, generator=generator),
        item_bias_N=torch.cat([half_N, half_N]),
        global_bias=torch.tensor(3.0),
    )
    random = np.random.default_rng(7)
    seen = ItemLists.from_pairs(random.integers(0, 120, 1500), random.integers(0, 300, 1500), num_users=120)
    item_ids, user_ids = [f"item-{index}" for index in range(300)], [f"user-{index}" for index in range(120)]
    return write(tmp_path_factory.mktemp("random"), scorer, item_ids, user_ids, random.integers(0, 50, 300).tolist(), seen, "random")


@pytest.fixture(scope="session")
def popularity_bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that only counts: all its vectors are zero."""
    scorer = Scorer.of_items(torch.tensor([3.0, 9.0, 6.0]), num_users=1)
    seen = ItemLists.from_pairs(np.array([0]), np.array([1]), num_users=1)
    return write(tmp_path_factory.mktemp("popularity"), scorer, ["x", "y", "z"], ["ann"], [3, 9, 6], seen, "popularity")


@pytest.fixture(scope="session")
def serve_url(ray_session: None) -> Iterator[str]:
    """The address of Serve's HTTP proxy on a free port."""
    from ray import serve

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 10})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
