"""Sharded tables: ownership, look-ups, and the same numbers as torch's optimisers on a dense table, at one rank and at two."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medley.training.row_exchange import RowOwners
from medley.training.row_update import ROW_STATES, RowOptimizer, update_rows
from medley.training.sharded_table import ShardedTable, make_sharded
from medley.users.table import dense_table
from tests.training import table_ranks
from tests.training.two_ranks import TwoRanks

CPU = torch.device("cpu")


def table(optimizer: RowOptimizer = "sparse_adam", num_rows: int = 20, width: int = 3, rank: int = 0, num_ranks: int = 1, **settings: Any) -> ShardedTable:
    made = make_sharded(optimizer, 0, rank, num_ranks, CPU, torch.float32)(num_rows, width, settings.pop("deviation", 1.0), **settings)
    assert isinstance(made, ShardedTable)
    return made


def whole(tables: list[ShardedTable], state: str | None = None) -> Tensor:
    """A table put together from what its ranks own."""
    slices = sorted((own.first_row, own.values) for each in tables for own in each.slices() if own.state == state)
    assert [first for first, _ in slices] == [sum(len(values) for _, values in slices[:number]) for number in range(len(slices))]
    return torch.cat([values for _, values in slices])


def step(made: ShardedTable, index: Tensor, number: int, *, learning_rate: float = 0.1, weight_decay: float = 0.0) -> None:
    """One update with the gradient of Σ rows³."""
    made(index).pow(3).sum().backward()
    made.collect(1.0)
    made.update(clip=1.0, learning_rate=learning_rate, weight_decay=weight_decay, num_steps=number)


def take_steps_beside(made: ShardedTable, dense: nn.Embedding, optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    """The same steps of both: each reads six rows at random."""
    for number in range(1, num_steps + 1):
        index = torch.randint(20, (6,), generator=torch.Generator().manual_seed(number))
        step(made, index, number)
        optimizer.zero_grad()
        dense(index).pow(3).sum().backward()
        optimizer.step()


@pytest.mark.parametrize(("num_rows", "num_ranks"), [(1, 1), (1, 3), (37, 1), (37, 2), (1000, 3), (600_000, 4)])
def test_every_row_has_one_owner_and_a_place_there(num_rows: int, num_ranks: int) -> None:
    rows_N = torch.arange(num_rows)
    everyone = [RowOwners(num_rows, rank, num_ranks) for rank in range(num_ranks)]
    assert sum(owners.num_own for owners in everyone) == num_rows
    for owners in everyone:
        own = rows_N[owners.owner_of(rows_N) == owners.rank]
        assert own.tolist() == [row for _, start, stop in owners.blocks() for row in range(start, stop)]
        assert torch.equal(owners.place_of(own), torch.arange(owners.num_own))


def test_neighbouring_blocks_belong_to_different_ranks_and_hold_8192_rows_of_a_large_table() -> None:
    owners = RowOwners(100_000_000, 1, 4)
    assert owners.owner_of(torch.tensor([0, 8191, 8192, 16384, 32767, 32768])).tolist() == [0, 0, 1, 2, 3, 0]


def test_first_values_do_not_depend_on_the_number_of_ranks() -> None:
    is_random_N = torch.arange(200) % 3 > 0
    alone = whole([table(num_rows=200, is_random_N=is_random_N)])
    assert torch.equal(alone, whole([table(num_rows=200, is_random_N=is_random_N, rank=rank, num_ranks=3) for rank in range(3)]))
    assert not alone[~is_random_N].any()
    assert alone[is_random_N].std().item() == pytest.approx(1.0, abs=0.1)
    assert len(alone.unique(dim=0)) == int(is_random_N.sum()) + 1
    assert not whole([table(deviation=0.0)]).any()


def test_a_look_up_is_that_of_an_embedding() -> None:
    made = table()
    index_BL = torch.tensor([[3, 3, 0], [19, 7, 3]], dtype=torch.int32)
    assert torch.equal(made(index_BL), nn.functional.embedding(index_BL, whole([made])))
    made.dtype = torch.bfloat16
    assert made(index_BL).dtype == torch.bfloat16


def test_look_ups_outside_of_training_leave_no_gradient_behind() -> None:
    made = table()
    made.eval()(torch.tensor([1]))
    with torch.no_grad():
        made.train()(torch.tensor([1]))
    assert made.pending == []


def test_sparse_adam_is_that_of_torch_on_a_dense_table() -> None:
    made = table()
    dense = nn.Embedding.from_pretrained(whole([made]), freeze=False, sparse=True)
    optimizer = torch.optim.SparseAdam(dense.parameters(), lr=0.1, betas=(0.9, 0.98))
    take_steps_beside(made, dense, optimizer, 7)
    torch.testing.assert_close(whole([made]), dense.weight.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole([made], "exp_avg_sq"), optimizer.state[dense.weight]["exp_avg_sq"], rtol=1e-5, atol=1e-7)


def test_sparse_adam_of_rows_that_every_step_reads_is_adamw() -> None:
    made = table()
    dense = nn.Parameter(whole([made]).clone())
    optimizer = torch.optim.AdamW([dense], lr=0.1, betas=(0.9, 0.98), weight_decay=0.3)
    for number in range(1, 6):
        step(made, torch.arange(20), number, weight_decay=0.3)
        optimizer.zero_grad()
        dense.pow(3).sum().backward()
        optimizer.step()
    torch.testing.assert_close(whole([made]), dense.detach(), rtol=1e-5, atol=1e-6)


def test_rowwise_adagrad_of_width_one_is_adagrad() -> None:
    made = table("rowwise_adagrad", width=1)
    dense = nn.Embedding.from_pretrained(whole([made]), freeze=False)
    optimizer = torch.optim.Adagrad(dense.parameters(), lr=0.1, eps=1e-8)
    take_steps_beside(made, dense, optimizer, 5)
    torch.testing.assert_close(whole([made]), dense.weight.detach(), rtol=1e-5, atol=1e-6)


def test_rowwise_optimisers_divide_a_row_by_the_root_of_its_mean_square() -> None:
    rows_P, gradient_PD = torch.tensor([1]), torch.tensor([[3.0, 4.0]])  # mean square 12.5
    settings = {"learning_rate": 0.5, "weight_decay": 0.0, "num_steps": 1}
    weight_ND, states = torch.zeros(2, 2), {"row_sum_sq": torch.tensor([[7.0], [12.5]])}
    update_rows("rowwise_adagrad", weight_ND, states, rows_P, gradient_PD, **settings)
    assert states["row_sum_sq"].tolist() == [[7.0], [25.0]]
    assert weight_ND.tolist() == [[0, 0], [pytest.approx(-0.5 * 3 / 5), pytest.approx(-0.5 * 4 / 5)]]
    weight_ND, states = torch.zeros(2, 2), {"exp_avg": torch.zeros(2, 2), "row_exp_avg_sq": torch.zeros(2, 1)}
    update_rows("rowwise_adam", weight_ND, states, rows_P, gradient_PD, **settings)
    assert states["row_exp_avg_sq"].tolist() == [[0], [pytest.approx(0.02 * 12.5)]]
    assert weight_ND[1].tolist() == [pytest.approx(-0.5 * 3 / 12.5**0.5), pytest.approx(-0.5 * 4 / 12.5**0.5)]


@pytest.mark.parametrize("optimizer", ROW_STATES)
def test_rows_that_were_not_read_neither_move_nor_decay(optimizer: RowOptimizer) -> None:
    made = table(optimizer)
    before = {state: whole([made], state).clone() for state in (None, *made.states_own)}
    step(made, torch.tensor([4, 4, 9]), 1, weight_decay=0.5)
    others = [row for row in range(20) if row not in (4, 9)]
    for state, values in before.items():
        assert torch.equal(whole([made], state)[others], values[others])
        assert (whole([made], state)[[4, 9]] != values[[4, 9]]).all()


def test_a_whole_state_dict_goes_in_at_any_number_of_ranks_and_out_of_a_world_of_one() -> None:
    dense = dense_table(50, 3, deviation=1.0)
    parts = [table(num_rows=50, rank=rank, num_ranks=2) for rank in range(2)]
    for part in parts:
        part.load_state_dict(dense.state_dict())
        assert part.state_dict() == {}
    assert torch.equal(whole(parts), dense.weight)
    alone = table(num_rows=50)
    alone.load_state_dict(dense.state_dict())
    assert torch.equal(alone.state_dict()["weight"], dense.weight)


def test_a_smaller_table_fills_the_first_rows() -> None:
    made = table(num_rows=50)
    before = whole([made]).clone()
    made.load_rows(torch.full((10, 3), 7.0))
    assert (whole([made])[:10] == 7).all()
    assert torch.equal(whole([made])[10:], before[10:])


@pytest.fixture(scope="module")
def trained(ranks: TwoRanks) -> list[dict[str, Any]]:
    """What two ranks found, see table_ranks.py."""
    return ranks(table_ranks.train_on_rank)


@pytest.mark.parametrize("optimizer", ROW_STATES)
def test_two_ranks_train_the_table_that_one_trains(trained: list[dict[str, Any]], optimizer: RowOptimizer) -> None:
    tables, norms = table_ranks.train(optimizer)
    assert min(norms) > table_ranks.CONFIG.gradient_clipping, "every step is to be clipped"
    owned = {}
    for rank in trained:
        assert rank[optimizer]["norms"] == pytest.approx(norms, rel=1e-5)
        assert not owned.keys() & rank[optimizer]["owned"].keys(), "a row has one owner"
        owned |= rank[optimizer]["owned"]
    for name, alone in (("vectors", tables.vectors), ("biases", tables.biases)):
        for own in alone.slices():
            torch.testing.assert_close(owned[name, own.state, own.first_row], own.values, rtol=1e-4, atol=1e-6)
        for rank in trained:
            torch.testing.assert_close(rank[optimizer]["read"][name].view(-1, alone.width), whole([alone]), rtol=1e-4, atol=1e-6)


def test_both_ranks_own_about_half(trained: list[dict[str, Any]]) -> None:
    rows = [sum(len(values) for (name, state, _), values in rank["sparse_adam"]["owned"].items() if (name, state) == ("vectors", None)) for rank in trained]
    assert sum(rows) == table_ranks.NUM_ROWS
    assert min(rows) > 0.45 * table_ranks.NUM_ROWS
