"""Models with graphs, trained on users who want the items of their group: what the graphs add shows where it must and only there."""

from typing import Any

import numpy as np
import torch

from medley.heads.neighbours import nearest_items
from medley.losses import FullSoftmaxConfig, batch_loss
from medley.model import ModelConfig, build_model
from medley.schema import Batch
from medley.training.config import OptimizerConfig
from medley.training.engine import TorchEngine

NUM_GROUPS, NUM_USERS, NUM_WARM, NUM_ITEMS = 4, 40, 60, 80
"""Item i and user u belong to group i mod 4 and u mod 4; items from 60 on are not in train."""


def train_pairs(num_each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each user's items: `num_each` of the 15 warm ones of the group."""
    random = np.random.default_rng(0)
    pairs = [(user, item) for user in range(NUM_USERS) for item in random.permutation(np.arange(user % NUM_GROUPS, NUM_WARM, NUM_GROUPS))[:num_each]]
    users, items = np.array(pairs).T
    return torch.tensor(users), torch.tensor(items)


def share_of_own_group(config: ModelConfig, num_each: int, candidates: range, num_steps: int, **built: Any) -> float:
    """How much of each user's top 5 among the candidates, own train items left out, is of the user's group."""
    users, items = train_pairs(num_each)
    counts = {"train_count_N": torch.bincount(items, minlength=NUM_ITEMS), "user_train_count_V": torch.bincount(users)}
    torch.manual_seed(0)
    model = build_model(config, {}, **counts, num_categories={}, mean_value=0.0, pretrained=False, cached={"vector": 3}, **built)
    nothing_BL = torch.zeros(len(users), 1, dtype=torch.int64)
    batch = Batch(
        place=(0, 0, 0),
        user_index_B=users,
        item_position_B=items,
        row_weight_B=torch.ones(len(users)),
        value_B=torch.zeros(len(users)),
        item_index_U=torch.arange(NUM_ITEMS),
        inputs={"vector": {"vector": torch.zeros(1, 3)}},
        present_mask_U={"vector": torch.zeros(NUM_ITEMS, dtype=torch.bool)},  # the encoders see nothing: only the graph knows the content
        known_positive_mask_BU=torch.zeros(len(users), NUM_ITEMS, dtype=torch.bool),
        history_position_BL=nothing_BL,
        history_mask_BL=nothing_BL.bool(),
    )
    engine = TorchEngine(model, OptimizerConfig(learning_rate=0.02, gradient_clipping=1e9), {"vector": None}, num_micro_batches=1)
    for _ in range(num_steps):
        loss = batch_loss(FullSoftmaxConfig(temperature=1.0), engine.forward(batch), batch, counts["train_count_N"], len(users), len(users))
        engine.backward(loss / len(users))
        engine.step(1.0)
    model.eval()
    with torch.no_grad():
        item_vectors_UD, item_bias_U = model(batch, want="items")
        user_vectors_BD, _ = model(batch, want="users")
    first_row_V = torch.searchsorted(users, torch.arange(NUM_USERS))
    scores_VU = user_vectors_BD[first_row_V] @ item_vectors_UD.T + item_bias_U
    scores_VU[users, items] = -torch.inf
    best_V5 = scores_VU[:, candidates.start : candidates.stop].topk(5).indices + candidates.start
    return (best_V5 % NUM_GROUPS == torch.arange(NUM_USERS)[:, None] % NUM_GROUPS).float().mean().item()


def with_graphs(**changes: Any) -> ModelConfig:
    encoder = {"kind": "features", "column": "vector", "train": "frozen", "cache": True}
    return ModelConfig.model_validate({"dimension": 8, "encoders": {"vector": encoder}, **changes})


def content(shuffled: bool) -> torch.Tensor:
    """The content graph of vectors that show the group, or of the same ones dealt out at random."""
    random = np.random.default_rng(1)
    centres = random.standard_normal((NUM_GROUPS, 3))
    vectors_ND = (centres[np.arange(NUM_ITEMS) % NUM_GROUPS] + 0.1 * random.standard_normal((NUM_ITEMS, 3))).astype(np.float32)
    if shuffled:
        vectors_ND = vectors_ND[random.permutation(NUM_ITEMS)]
    return nearest_items({"vector": vectors_ND}, {"vector": np.ones(NUM_ITEMS, dtype=bool)}, np.arange(NUM_ITEMS) < NUM_WARM, 5)


def test_the_content_graph_ranks_items_that_training_never_saw() -> None:
    config, cold = with_graphs(item_id={"neighbours": {"num_neighbours": 5}}), range(NUM_WARM, NUM_ITEMS)
    found = share_of_own_group(config, 10, cold, 60, neighbours_NK=content(shuffled=False))
    shuffled = share_of_own_group(config, 10, cold, 60, neighbours_NK=content(shuffled=True))
    print(f"cold items of the own group: with the graph {found:.3f}, with a shuffled one {shuffled:.3f}, by chance 0.25")
    assert found > 0.9
    assert shuffled < 0.5


def test_propagation_finds_the_group_of_users_who_had_little() -> None:
    plain = share_of_own_group(with_graphs(), 2, range(NUM_WARM), 30)
    propagated = share_of_own_group(with_graphs(propagation={"num_layers": 3}), 2, range(NUM_WARM), 30, train_pairs=train_pairs(2))
    print(f"warm items of the own group after 30 steps on 2 items a user: plain {plain:.3f}, propagated {propagated:.3f}, by chance 0.25")
    assert propagated > plain + 0.1
