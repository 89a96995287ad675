"""LightGCN's propagation against its formula with dense matrices, and what evaluation keeps."""

import torch
from torch import nn

from medley.heads.light_graph import LightGraph

USERS, ITEMS = torch.tensor([0, 0, 1, 2, 2, 2, 0]), torch.tensor([0, 1, 1, 0, 1, 3, 0])
"""User 3 and item 2 have nothing; the last pair is a repeat."""


def tables(seed: int = 0) -> tuple[nn.Embedding, nn.Embedding]:
    torch.manual_seed(seed)
    return nn.Embedding(4, 3), nn.Embedding(4, 3)


def graph(num_layers: int = 2) -> LightGraph:
    return LightGraph(USERS, ITEMS, num_users=4, num_items=4, num_layers=num_layers)


def test_propagation_is_the_mean_of_the_powers_of_the_normalised_adjacency():
    user_table, item_table = tables()
    adjacency = torch.zeros(8, 8)
    for user, item in set(zip(USERS.tolist(), ITEMS.tolist(), strict=True)):
        adjacency[user, 4 + item] = adjacency[4 + item, user] = 1
    scale = adjacency.sum(dim=1).clamp(min=1).rsqrt()
    normalised = scale[:, None] * adjacency * scale
    start = torch.cat([user_table.weight, item_table.weight])
    expected = (start + normalised @ start + normalised @ normalised @ start) / 3
    users, items = graph()(user_table, item_table)
    torch.testing.assert_close(torch.cat([users, items]), expected)


def test_a_node_without_interactions_keeps_a_share_of_its_own_vector():
    user_table, item_table = tables()
    users, items = graph(num_layers=1)(user_table, item_table)
    torch.testing.assert_close(users[3], user_table.weight[3] / 2)
    torch.testing.assert_close(items[2], item_table.weight[2] / 2)


def test_gradient_reaches_both_tables():
    user_table, item_table = tables()
    sum(part.square().sum() for part in graph()(user_table, item_table)).backward()
    assert user_table.weight.grad.any(dim=1).all()
    assert item_table.weight.grad.any(dim=1).all()


def test_evaluation_propagates_once_and_training_makes_it_forget():
    user_table, item_table = tables()
    module = graph().eval()
    with torch.no_grad():
        first = module(user_table, item_table)
        assert module(user_table, item_table)[0] is first[0]
        user_table.weight.mul_(2)
        module.train()
        module.eval()
        assert not torch.equal(module(user_table, item_table)[0], first[0])
    module.train()
    assert module(user_table, item_table)[0].requires_grad


def test_the_graph_is_no_part_of_a_checkpoint():
    assert list(graph().state_dict()) == []
