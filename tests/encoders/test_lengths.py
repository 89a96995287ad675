"""Texts are encoded with others of like length, and get the same vectors at the same places."""

import pytest
import torch

from medley.encoders.lengths import encode_by_length, length_groups, real_lengths


def test_lengths_count_to_the_last_token_of_any_input():
    ids_PT = torch.tensor([[5, 0, 7, 0], [0, 0, 0, 0], [0, 3, 0, 0]])  # number 0 may be a token, as in RoBERTa
    mask_PT = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    assert real_lengths({"token_ids": ids_PT}).tolist() == [3, 0, 2]
    assert real_lengths({"token_ids": ids_PT, "token_mask": mask_PT}).tolist() == [4, 0, 2]


def test_rows_of_a_length_share_a_call_and_few_rows_join_the_next():
    lengths = [30] * 16 + [3] * 20 + [60]
    assert length_groups(lengths) == [(8, list(range(16, 36))), (32, list(range(16))), (64, [36])]
    assert length_groups([9, 8, 1]) == [(16, [2, 1, 0])]
    assert length_groups([0]) == [(8, [0])]


def test_vectors_come_back_in_the_order_of_the_rows():
    calls = []

    def encoder(inputs):
        calls.append(tuple(inputs["token_ids"].shape))
        return inputs["token_ids"].sum(dim=1, keepdim=True).float()

    torch.manual_seed(0)
    lengths = torch.randint(1, 60, (200,)).tolist()
    ids_PT = torch.nn.utils.rnn.pad_sequence([torch.randint(1, 100, (length,)) for length in lengths], batch_first=True)
    vectors_P1 = encode_by_length(encoder, {"token_ids": ids_PT})
    assert vectors_P1.squeeze(1).tolist() == ids_PT.sum(dim=1).tolist()
    assert len(calls) == len(length_groups(lengths)) == 8
    # Less than a quarter more than the tokens themselves, where one call would take nearly twice as many.
    assert sum(rows * length for rows, length in calls) < 1.25 * sum(lengths) < 0.66 * ids_PT.numel()


@pytest.mark.parametrize("num_rows", [1, 40])
def test_gradients_flow_through_all_groups(num_rows: int):
    embedding = torch.nn.Embedding(10, 3)
    ids_PT = torch.ones(num_rows, 20, dtype=torch.int64)
    ids_PT[::2, 5:] = 0
    encode_by_length(lambda inputs: embedding(inputs["token_ids"]).sum(dim=1), {"token_ids": ids_PT})[:, 0].sum().backward()
    assert embedding.weight.grad[1, 0].item() == (ids_PT == 1).sum().item()
