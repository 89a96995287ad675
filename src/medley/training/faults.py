"""What can end a training run: kinds of fault with their exit codes, the errors that carry them, and how a failed attempt is read."""

from typing import Any

from medley.schema import InputError
from medley.storage import StorageError

EXIT_CODES = {
    "bad_input": 2,
    "workers_lost": 3,
    "not_finite": 4,
    "storage": 5,
    "disk_full": 5,
    "hung": 6,
    "preempted": 75,
}
"""Kind of fault → exit code of a command whose training it ended; every other failure is 1. 75 is EX_TEMPFAIL of sysexits.h: run it again."""

HUNG_EXIT_CODE = EXIT_CODES["hung"]
"""With which a rank's process ends that its own watchdog stops."""

_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed", "NCCL")
"""What collectives say when another rank is gone."""


class LossNotFiniteError(RuntimeError):
    """A loss that is NaN or infinite, with its place; survives pickling between processes."""

    def __init__(self, got: str, expected: str, remedy: str):
        super().__init__(got, expected, remedy)
        self.got, self.expected, self.remedy = got, expected, remedy

    def __str__(self) -> str:
        return f"{self.got}; expected {self.expected}; {self.remedy}"


class TrainingStoppedError(RuntimeError):
    """A run that was started again `train.max_failures` times and failed once more. kind: a key of EXIT_CODES."""

    def __init__(self, kind: str, message: str):
        super().__init__(kind, message)
        self.kind, self.message = kind, message

    @property
    def exit_code(self) -> int:
        """With which the command ends."""
        return EXIT_CODES[self.kind]

    def __str__(self) -> str:
        return self.message


def fault_kind(error: BaseException) -> str:
    """The kind of what a rank raised or Ray Train says of it: a key of EXIT_CODES, or `failed`."""
    if isinstance(error, InputError):
        return "bad_input"
    if isinstance(error, LossNotFiniteError):
        return "not_finite"
    if isinstance(error, StorageError):
        return "disk_full" if "No space left" in str(error) else "storage"
    is_lost = is_dead_process(error) or any(words in str(error) for words in _LOST_PEER)
    return "workers_lost" if is_lost else "failed"


def is_dead_process(error: BaseException) -> bool:
    """Whether Ray says that the rank's own process or machine is gone."""
    import ray.exceptions

    return isinstance(error, ray.exceptions.RayActorError | ray.exceptions.WorkerCrashedError | ray.exceptions.NodeDiedError)


def rank_errors(error: BaseException) -> dict[int, BaseException]:
    """Rank → what ended it, out of what Ray Train raises; rank -1: no rank but the group failed."""
    failures: dict[int, Any] = getattr(error, "worker_failures", None) or {-1: error}
    return {rank: _innermost(failure) for rank, failure in failures.items()}


def _innermost(error: BaseException) -> BaseException:
    """The first of ours along the causes, else the error itself."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, InputError | StorageError | LossNotFiniteError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error
