"""What a run writes down while it goes: one line per logged step, JSONL and TensorBoard."""

import json
import logging
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from medley.manifest import join_uri, write_bytes

logger = logging.getLogger(__name__)


class RunLog:
    """Rank 0's log of a run. Records are kept locally and copied to `log/` at every flush, so that any storage works."""

    def __init__(self, run_uri: str, attempt: str):
        from tensorboardX import SummaryWriter

        self.run_uri = run_uri
        self.attempt = attempt
        self.folder = tempfile.TemporaryDirectory(prefix="medley-log-")
        self.board = SummaryWriter(self.folder.name, write_to_disk=True)
        self.lines: list[str] = []
        self.started = time.monotonic()

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One record: `kind` is step or epoch; numbers go to TensorBoard too."""
        entry = {"kind": kind, "step": step, "seconds": round(time.monotonic() - self.started, 3), **values}
        self.lines.append(json.dumps(entry))
        for name, value in values.items():
            if isinstance(value, int | float):
                self.board.add_scalar(f"{kind}/{name.replace('@', '_at_')}", value, step)

    def flush(self) -> None:
        """Copy everything written so far to the run folder."""
        self.board.flush()
        write_bytes(join_uri(self.run_uri, "log", f"{self.attempt}.jsonl"), ("\n".join(self.lines) + "\n").encode())
        for path in Path(self.folder.name).iterdir():
            write_bytes(join_uri(self.run_uri, "log", f"{self.attempt}.{path.name}"), path.read_bytes())

    def close(self) -> None:
        """Flush and remove the local copy."""
        self.flush()
        self.board.close()
        self.folder.cleanup()


def peak_memory_megabytes() -> float:
    """Largest resident memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
