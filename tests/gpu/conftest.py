"""Tests that need CUDA; skipped as a whole without it. Written without a GPU at hand: nobody has run them yet."""

import pytest
import torch


@pytest.fixture(autouse=True)
def needs_cuda() -> None:
    """Skip where there is no GPU."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
