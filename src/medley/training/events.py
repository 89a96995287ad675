"""The event log of a run: what happened to it, in order, over all its attempts and commands.

log/events.jsonl        kind, time (UTC), attempt, rank (null: the driver), step (null: unknown), message
log/events/NAME.jsonl   what the ranks of the running attempt have written; the driver moves it into events.jsonl when the attempt ends

Storage may be unable to append, so each writer has a file of its own and writes it whole; events are few.
"""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from medley.manifest import exists, join_uri, list_folder, read_bytes, remove_folder, write_bytes

logger = logging.getLogger(__name__)

Event = dict[str, Any]


def read_events(run_uri: str) -> list[Event]:
    """All events of a run, oldest first; also those of ranks whose attempt has not ended."""
    parts = [join_uri(run_uri, "log", "events.jsonl")]
    parts += [join_uri(run_uri, "log", "events", name) for name in list_folder(join_uri(run_uri, "log", "events")) if name.endswith(".jsonl")]
    events = [event for part in parts if exists(part) for event in _parse(read_bytes(part))]
    return sorted(events, key=lambda event: event["time"])


def _parse(content: bytes) -> list[Event]:
    return [json.loads(line) for line in content.decode().splitlines()]


def _encode(events: list[Event]) -> bytes:
    return "".join(json.dumps(event) + "\n" for event in events).encode()


def _event(kind: str, attempt: int, rank: int | None, step: int | None, message: str) -> Event:
    return {"kind": kind, "time": datetime.now(UTC).isoformat(), "attempt": attempt, "rank": rank, "step": step, "message": message}


class RankEvents:
    """One rank's part of the event log."""

    def __init__(self, run_uri: str, attempt: int, rank: int):
        self.uri = join_uri(run_uri, "log", "events", f"attempt-{attempt:03d}-rank-{rank}.jsonl")
        self.attempt, self.rank = attempt, rank
        self.events: list[Event] = []

    def write(self, kind: str, message: str, step: int | None = None) -> None:
        """Add one event and write the part."""
        logger.info("%s | rank %d | %s", kind, self.rank, message)
        self.events.append(_event(kind, self.attempt, self.rank, step, message))
        write_bytes(self.uri, _encode(self.events))


class DriverEvents:
    """The driver's end of the event log: the only writer of events.jsonl. attempt: of all commands so far, from 1; move it on for each."""

    def __init__(self, run_uri: str):
        self.run_uri = run_uri
        self.events = read_events(run_uri)
        self.attempt = max((event["attempt"] for event in self.events), default=0)

    def write(self, kind: str, message: str, *, rank: int | None = None, step: int | None = None) -> None:
        """Add one event and write the log."""
        logger.info("%s | attempt %d | %s", kind, self.attempt, message)
        self.events.append(_event(kind, self.attempt, rank, step, message))
        write_bytes(join_uri(self.run_uri, "log", "events.jsonl"), _encode(self.events))

    def collect(self) -> list[Event]:
        """Move what the ranks wrote into the log; returns the events of ranks in the current attempt."""
        known = {(event["time"], event["kind"], event["rank"]) for event in self.events}
        found = [event for event in read_events(self.run_uri) if (event["time"], event["kind"], event["rank"]) not in known]
        self.events = sorted(self.events + found, key=lambda event: event["time"])
        write_bytes(join_uri(self.run_uri, "log", "events.jsonl"), _encode(self.events))
        remove_folder(join_uri(self.run_uri, "log", "events"))
        return [event for event in found if event["attempt"] == self.attempt]
