"""A rank that makes no progress writes all its stacks to the run's log and ends itself, so that the group is started again.

log/stacks/attempt-001-rank-0.txt   what every thread of the rank was doing; a rank whose process is stopped cannot write one
"""

import faulthandler
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable

from medley.manifest import join_uri, write_bytes
from medley.training.faults import HUNG_EXIT_CODE

logger = logging.getLogger(__name__)

GRACE_SECONDS = 4.0
"""between a rank's stacks and its end: the others, who wait for it, are to notice by their own watchdogs and write theirs first"""
STANDARD_ERROR = 2
UPLOAD_SECONDS = 10.0
"""for storage to take the stacks: it may be what hangs"""


class Watchdog:
    """Watches one rank from a thread; `beat` says that it goes on. Use as a context.

    A main thread that holds Python's lock for ever stops that thread too: behind it, a timer of faulthandler's, in C, writes the stacks to
    standard error and ends the process after `seconds` and a half.
    """

    def __init__(self, seconds: float, stacks_uri: str, on_hang: Callable[[str], None]):
        """on_hang: gets a message before the process ends; what it raises is logged."""
        self.seconds, self.stacks_uri, self.on_hang = seconds, stacks_uri, on_hang
        self.beat_at = time.monotonic()
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.beat()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self.thread.join()
        faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """The rank goes on. Cheap: call it as often as you like."""
        self.beat_at = time.monotonic()

    def _watch(self) -> None:
        armed_at = 0.0
        while not self.closed.wait(min(1.0, self.seconds / 10)):
            if self.beat_at != armed_at:
                faulthandler.dump_traceback_later(1.5 * self.seconds + GRACE_SECONDS + UPLOAD_SECONDS, exit=True, file=STANDARD_ERROR)
                armed_at = self.beat_at
            waited = time.monotonic() - self.beat_at
            if waited > self.seconds:
                self._end(waited)

    def _end(self, waited: float) -> None:
        message = f"no progress for {waited:.1f} s (train.watchdog_seconds={self.seconds:g}); stacks in {self.stacks_uri}"
        logger.error("watchdog | %s", message)
        report = threading.Thread(target=self._report, args=(message,), daemon=True)
        report.start()
        report.join(UPLOAD_SECONDS)
        time.sleep(GRACE_SECONDS)
        os._exit(HUNG_EXIT_CODE)

    def _report(self, message: str) -> None:
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            stacks = file.read()
        for action in (lambda: write_bytes(self.stacks_uri, stacks), lambda: self.on_hang(message)):
            try:
                action()
            except Exception:
                # The process ends in any case; storage may be what hung.
                logger.exception("watchdog | could not report")


def stacks_uri(run_uri: str, attempt: int, rank: int) -> str:
    """Where a rank writes its stacks."""
    return join_uri(run_uri, "log", "stacks", f"attempt-{attempt:03d}-rank-{rank}.txt")
