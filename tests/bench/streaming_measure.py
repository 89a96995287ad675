"""What a loader of the streaming bench is measured by: rows/s and processor time of an epoch that ends in a trivial training step."""

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

MARK = "MEDLEY_BENCH_RUN"
"""Environment variable by which a run's processes are told from all others."""

Inputs = dict[str, Tensor]
Rates = dict[str, float]


def train_step(inputs: Mapping[str, Tensor]) -> int:
    """Looks at a value of every page, in the order of memory; returns the rows, which every modality must have."""
    assert set(inputs) == {"text", "image", "audio"}
    assert len({len(tensor) for tensor in inputs.values()}) == 1
    for tensor in inputs.values():
        in_memory_order = tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
        assert torch.isfinite(in_memory_order[:: 4096 // tensor.element_size()].float()).all()
    return len(inputs["text"])


def cpu_seconds() -> float:
    """User and system time so far of this run's processes, ended children that were waited for included."""
    own, ticks = f"{MARK}={os.environ[MARK]}".encode(), 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if own in (folder / "environ").read_bytes():
                    ticks += sum(map(int, (folder / "stat").read_text().rpartition(")")[2].split()[11:15]))
            except OSError:  # it has ended meanwhile
                continue
    return ticks / os.sysconf("SC_CLK_TCK")


def rates(epochs: Iterator[Iterator[Inputs]], num_rows: int, started: float) -> Rates:
    """Rows/s of the cold epoch, which began at `started`, and of the warm one, and processor time a row."""
    found: Rates = {}
    for name, batches in zip(("cold", "warm"), epochs, strict=True):
        cpu_before = cpu_seconds()
        assert sum(train_step(inputs) for inputs in batches) == num_rows
        found[name] = num_rows / (time.perf_counter() - started)
        found[f"{name}_cpu_us"] = (cpu_seconds() - cpu_before) / num_rows * 1e6
        started = time.perf_counter()
    return found
