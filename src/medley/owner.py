"""One process at a time: who works on a prepared set or a run says so in a file beside it, again and again."""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from medley.manifest import exists, open_storage, read_bytes, write_bytes
from medley.schema import InputError
from medley.storage import StorageError, storage_failures

logger = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
"""between two signs of life"""
SILENT_SECONDS = 30.0
"""An owner who gives no sign for so long is gone. Watched, not computed from its times: clocks of machines differ."""


@contextmanager
def owned(uri: str, what: str) -> Iterator[None]:
    """Own the file at `uri` meanwhile; an InputError where another process does, and lives. what: "prepared set" or "run", for the message.

    An owner that ended without removing its file is noticed at once on its own machine, from another one after SILENT_SECONDS. Two that start in the
    same instant may both own it.
    """
    _wait_for_silence(uri, what)
    token, ended = uuid.uuid4().hex, threading.Event()
    _beat(uri, token)
    thread = threading.Thread(target=_beat_until, args=(uri, token, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        filesystem, path = open_storage(uri)
        with suppress(FileNotFoundError), storage_failures("remove", uri):
            filesystem.delete_file(path)


def _wait_for_silence(uri: str, what: str) -> None:
    first, started = _read(uri), time.monotonic()
    if first is None or _has_ended(first):
        return
    logger.info("%s is owned by process %s on %s; watching it for %g s", uri, first.get("process"), first.get("host"), SILENT_SECONDS)
    while time.monotonic() - started < SILENT_SECONDS:
        time.sleep(BEAT_SECONDS / 5)
        if (found := _read(uri)) is None:
            return
        if found != first:
            raise InputError(
                f"'{uri}' says that process {found.get('process')} on {found.get('host')} works on this {what}, since {found.get('seconds', 0):.0f} s",
                "one process at a time",
                "wait until it is done and run the same command again, which then finds it complete; or end it",
            )


def _read(uri: str) -> dict[str, Any] | None:
    """What the owner wrote; None where there is none, or nothing that can be read."""
    if not exists(uri):
        return None
    with suppress(ValueError):  # InputError too: removed meanwhile
        found = json.loads(read_bytes(uri))
        return found if isinstance(found, dict) else None
    return None


def _has_ended(owner: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine that is no more."""
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("process"), int):
        return False
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _beat_until(uri: str, token: str, ended: threading.Event) -> None:
    started = time.monotonic()
    while not ended.wait(BEAT_SECONDS):
        with suppress(StorageError, OSError):  # the work itself will say so; one sign missed is no harm
            _beat(uri, token, time.monotonic() - started)


def _beat(uri: str, token: str, seconds: float = 0.0) -> None:
    write_bytes(uri, json.dumps({"host": socket.gethostname(), "process": os.getpid(), "token": token, "seconds": seconds}).encode())
