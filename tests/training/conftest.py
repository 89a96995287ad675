"""One finished run of the tiny data, shared by the tests that only look at it."""

import socket
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pyarrow.fs as pafs
import pytest
import torch

from medley.config import Run, make_run
from tests.training.two_ranks import TwoRanks, two_ranks

TinyRun = Callable[..., Run]


@pytest.fixture(scope="session")
def tiny_run(tiny_prepared: str, tiny_tables: str, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Makes Runs of one storage: `tiny_run(name, key=value of train, …)`; 576 train rows in 4 micro-batches of 8 are 18 steps an epoch."""
    storage = str(tmp_path_factory.mktemp("storage"))

    def make(name: str, **train: Any) -> Run:
        values = {
            "storage": storage,
            "name": name,
            "inputs": {"prepared": tiny_prepared, "tables": tiny_tables},
            "model": {
                "dimension": 8,
                "encoders": {
                    "text": {"kind": "subword", "vocabulary_size": 100, "dimension": 6},
                    # Frozen: each ReLU that a last digit pushes over its edge would add to the difference between orders of sums (1e-7 for the
                    # first 20 steps of this little network when trained, 1e-3 after 50).
                    "image": {"kind": "resnet", "side_pixels": 16, "width": 8, "train": "frozen"},
                },
                "item_id": {"dropout": 0.5},
            },
            "loss": {"kind": "in_batch_softmax", "temperature": 1.0},
            "train": {
                "epochs": 3,
                "micro_batch_size": 8,
                "num_micro_batches": 4,
                "workers": 2,
                "log_every_steps": 1,
                "optimizer": {"learning_rate": 0.01, "table_learning_rate": 0.05},
                **train,
            },
        }
        return make_run(values, "test")

    return make


@pytest.fixture(scope="session")
def finished_run(ray_session: None, tiny_run: TinyRun) -> tuple[Run, dict[str, Any]]:
    """Two workers at ZeRO-2, all checkpoints kept, and what fit returned."""
    from medley.training.run import fit

    run = tiny_run("base", checkpoint_every_steps=10, keep_checkpoints=20)
    return run, fit(run)


@pytest.fixture(scope="package")
def process_group() -> Iterator[None]:
    """A world of one, as Ray Train would make it. One for all tests: DeepSpeed keeps the first that it sees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        patch.setenv("DS_ACCELERATOR", "cpu")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="package")
def ranks() -> Iterator[TwoRanks]:
    """Two gloo ranks without Ray, see `two_ranks`."""
    with two_ranks() as call:
        yield call


@pytest.fixture
def written_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that pyarrow does not know as local, as an object store is: folders are written in place and come with their files."""
    storage = pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("file", auto_mkdir=True)))
    for module in ("medley.manifest", "medley.training.checkpoint_choice", "medley.training.checkpoint_parts"):
        monkeypatch.setattr(f"{module}.open_storage", lambda uri: (storage, uri))
