"""Memory that comes back once nobody refers to it, and never before."""

import torch

from medley.data.reused_memory import ReusedMemory, flattened


def test_rows_have_the_shape_type_and_layout_of_the_example():
    like = torch.zeros(4, 5, 3, dtype=torch.int16).permute(2, 0, 1)
    rows = ReusedMemory(like).rows(7)
    assert (rows.shape, rows.dtype, rows[0].stride()) == ((7, 3, 4, 5), torch.int16, like.stride())
    flattened(rows)[2] = torch.arange(60)
    assert torch.equal(rows[2], torch.arange(60, dtype=torch.int16).view(4, 5, 3).permute(2, 0, 1))


def test_memory_is_used_again_once_the_last_view_is_gone():
    memory = ReusedMemory(torch.zeros(1000))
    rows = memory.rows(8)
    place = rows.data_ptr()
    view = rows[3:5].view(-1)
    del rows
    other = memory.rows(8)
    assert other.data_ptr() != place
    del view
    assert memory.rows(6).data_ptr() == place


def test_memory_that_a_gradient_still_needs_is_not_handed_out():
    memory, weight = ReusedMemory(torch.zeros(3)), torch.ones(3, requires_grad=True)
    rows = memory.rows(2)
    rows[:] = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    loss = (rows * weight).sum()
    del rows
    memory.rows(2).zero_()
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [5.0, 7.0, 9.0]


def test_larger_requests_get_new_memory_and_smaller_ones_the_old():
    memory = ReusedMemory(torch.zeros(4))
    place = memory.rows(80).data_ptr()
    assert memory.rows(90).data_ptr() == place  # an eighth more was set aside
    assert memory.rows(200).shape == (200, 4)
    assert memory.rows(1).shape == (1, 4)
