"""Untrusted media decoded in a limited child process, so that a file that crashes, hangs or bloats a decoder costs its own row only."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

from medley.media.child import AUDIO_KIND, CLEANED, CLEANED_SILENT, COUNT, IMAGE_KIND, READY, REFUSED, REPLY, REQUEST
from medley.media.limits import MediaConfig, MediaError, check_size

_KINDS = {"image": IMAGE_KIND, "audio": AUDIO_KIND}
_BATCH_ITEMS, _BATCH_BYTES = 64, 4_000_000
_PIPE_SECONDS = 60.0
"""What a child may take to start, or to read a batch."""
_WAITING_FACTOR = 12
"""How much longer than its processor time an answer may take: the machine may be busy, and a process that sleeps uses no processor time."""
_MAX_ATTEMPTS = 2
"""A row is given up when its second process crashes: the first may have been ended from outside (a full machine, an operator)."""


class CleanMedium(NamedTuple):
    """What became of an image or a sound: the bytes to store, or why there are none."""

    content: bytes | None
    """JPEG or FLAC within the limits of the MediaConfig"""
    reason: str = ""
    """one short sentence where content is None"""
    is_silent: bool = False
    """a sound that is silence or a constant"""


class MediaProcess:
    """Cleans images and sounds in one child process, started at the first use and again after it ended. A context manager; not thread-safe.

    The child ends with the `with` block, and by itself when this process dies (its standard input ends).
    """

    def __init__(self, config: MediaConfig):
        self.config = config
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    @property
    def process_id(self) -> int | None:
        """The child's, or None where none runs."""
        return self._child.pid if self._child else None

    def close(self) -> None:
        """End the child; it holds nothing that could be lost."""
        if self._child:
            self._end_child()

    def clean(self, media: Sequence[tuple[str, bytes]]) -> list[CleanMedium]:
        """Each medium as it is to be stored, or the reason why not, in order. media: ("image" or "audio", encoded bytes).

        RuntimeError where no child can be started at all.
        """
        refused = {place: reason for place, (what, data) in enumerate(media) if (reason := self._size_fault(what, data))}
        cleaned = iter(self._clean_readable([medium for place, medium in enumerate(media) if place not in refused]))
        return [CleanMedium(None, refused[place]) if place in refused else next(cleaned) for place in range(len(media))]

    def _size_fault(self, what: str, data: bytes) -> str:
        try:
            check_size(what, data, self.config)
        except MediaError as error:
            return str(error)
        return ""

    def _clean_readable(self, media: Sequence[tuple[str, bytes]]) -> list[CleanMedium]:
        cleaned: list[CleanMedium] = []
        num_attempts = 0
        while len(cleaned) < len(media):
            if self._child is None:
                self._start_child()
            batch = _first_batch(media[len(cleaned) :])
            try:
                self._send(batch)
                for _ in batch:
                    cleaned.append(self._receive())
                    num_attempts = 0
            except (BrokenPipeError, EOFError, TimeoutError) as error:
                num_attempts += 1
                reason, is_final = self._end_child(is_hanging=isinstance(error, TimeoutError))
                if is_final or num_attempts == _MAX_ATTEMPTS:
                    cleaned.append(CleanMedium(None, reason))
                    num_attempts = 0
        return cleaned

    def _start_child(self) -> None:
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        # Nothing else of the environment: it may hold credentials.
        environment = {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        environment |= {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}
        self._child = subprocess.Popen(
            [sys.executable, "-c", "from medley.media.child import main; main()", self.config.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
            start_new_session=True,  # an interrupt at the terminal is for this process, which ends the child
        )
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        try:
            code, _ = self._receive_frame(_PIPE_SECONDS)
            assert code == READY
        except (EOFError, TimeoutError):
            reason, _ = self._end_child()
            raise RuntimeError(f"the media decoder did not start in {_PIPE_SECONDS:g} s ({reason}); its error is above") from None

    def _end_child(self, is_hanging: bool = False) -> tuple[str, bool]:
        """Make sure that the child is gone. Returns why it ended, and whether the same medium would surely end it again."""
        child = self._child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        self._child = None
        child.kill()  # no more than certainty where it ended by itself: its exit code stands before its pipes close
        child.stdin.close()
        child.stdout.close()
        code = child.wait()
        if is_hanging:
            return f"decoder gave no answer in {_WAITING_FACTOR * self.config.max_decode_seconds:g} s", True
        if code == -signal.SIGPROF:
            return f"decoder took more than {self.config.max_decode_seconds:g} s", True
        return (f"decoder crashed (signal {-code})" if code < 0 else f"decoder ended (exit code {code})"), False

    def _send(self, batch: Sequence[tuple[str, bytes]]) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        pipe, deadline = self._child.stdin.fileno(), time.monotonic() + _PIPE_SECONDS
        frames = [part for what, data in batch for part in (REQUEST.pack(_KINDS[what], len(data)), data)]
        rest = memoryview(b"".join([COUNT.pack(len(batch)), *frames]))
        while rest:
            _wait(pipe, select.POLLOUT, deadline)
            rest = rest[os.write(pipe, rest) :]

    def _receive(self) -> CleanMedium:
        code, content = self._receive_frame(_WAITING_FACTOR * self.config.max_decode_seconds)
        if code == REFUSED:
            return CleanMedium(None, content.decode(errors="replace"))
        assert code in (CLEANED, CLEANED_SILENT)
        return CleanMedium(content, is_silent=code == CLEANED_SILENT)

    def _receive_frame(self, timeout_seconds: float) -> tuple[int, bytes]:
        deadline = time.monotonic() + timeout_seconds
        code, size = REPLY.unpack(self._read(REPLY.size, deadline))
        return code, self._read(size, deadline)

    def _read(self, size: int, deadline: float) -> bytes:
        assert self._child is not None
        assert self._child.stdout is not None
        pipe, content = self._child.stdout.fileno(), bytearray()
        while len(content) < size:
            _wait(pipe, select.POLLIN, deadline)
            part = os.read(pipe, size - len(content))
            if not part:
                raise EOFError
            content += part
        return bytes(content)


def _first_batch(media: Sequence[tuple[str, bytes]]) -> Sequence[tuple[str, bytes]]:
    """The first medium and as many more as are sent together."""
    size_bytes = 0
    for place, (_, data) in enumerate(media[:_BATCH_ITEMS]):
        size_bytes += len(data)
        if place > 0 and size_bytes > _BATCH_BYTES:
            return media[:place]
    return media[:_BATCH_ITEMS]


def _wait(pipe: int, event: int, deadline: float) -> None:
    """Until the pipe is ready or its other end is gone; TimeoutError after the deadline. Not select(): it fails for file numbers above 1023."""
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(max(0, deadline - time.monotonic()) * 1000):
        raise TimeoutError
