"""A node's copies of files on remote storage: made when first read, named by their hash, the least recently opened ones removed."""

import contextlib
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from medley.manifest import read_bytes, write_bytes

PREFIX, SUFFIX = "medley-", ".arrow"


@dataclass(frozen=True)
class NodeCache:
    """A folder for copies. Safe to use from several threads and processes."""

    folder: str | None = None
    """None: the system's temporary folder"""
    max_bytes: int | None = None
    """What all copies together may take; the newest one stays even where it takes more. None: no limit, and nothing is removed."""

    def copy(self, uri: str, digest: str) -> tuple[Path, str]:
        """(where a copy of the remote file lies, its SHA-256): the copy of this hash that is there, or a new one where it is absent or damaged."""
        path = self._folder / f"{PREFIX}{digest}{SUFFIX}"
        # Another process may remove the copy while it is looked at: then it is absent.
        with contextlib.suppress(FileNotFoundError):
            found = file_hash(path)
            os.utime(path)
            if found == digest:
                return path, found
        content = read_bytes(uri)
        write_bytes(str(path), content)
        self._remove_oldest(path)
        return path, hashlib.sha256(content).hexdigest()

    @property
    def _folder(self) -> Path:
        return Path(self.folder or tempfile.gettempdir())

    def _remove_oldest(self, kept: Path) -> None:
        """Copies that a process has mapped stay readable there; their room on the disk comes back when it lets go of them."""
        if self.max_bytes is None:
            return
        copies = []
        for path in self._folder.glob(f"{PREFIX}*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                copies.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies):
            if total <= self.max_bytes:
                return
            if path != kept:
                path.unlink(missing_ok=True)
                total -= size


def file_hash(path: Path) -> str:
    """SHA-256 of a local file."""
    return hashlib.sha256(pa.memory_map(str(path)).read_buffer()).hexdigest()
