"""Folders that are whole or absent: files first, hashes, the manifest last; verified before they are read.

A stage writes `NAME.tmp-ATTEMPT/`, then `manifest.json` in it (path, size, SHA-256 of every file), then renames the folder.
On an object store, which cannot rename folders, the files are written in place and the manifest last: a folder without one does not exist.
A manifest holds its own hash too: a bit that flips anywhere in the folder is noticed.
"""

import hashlib
import importlib.metadata
import json
import logging
import platform
import posixpath
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from medley.schema import InputError
from medley.storage import StorageError, absolute_uri, beside_uri, can_rename, join_uri, open_storage, read_piece, storage_failures

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

OWN_HASH = "sha256"
"""Key of a manifest's own hash."""

NO_HASH = "0" * 64
"""Stands in the place of that hash while it is computed."""


def read_bytes(uri: str) -> bytes:
    """The content of one file; a missing one is an InputError."""
    filesystem, path = open_storage(uri)
    try:
        with storage_failures("read", uri), filesystem.open_input_stream(path) as stream:
            return read_piece(stream)
    except FileNotFoundError as error:
        raise InputError(f"file '{uri}' does not exist", "a readable file", "check the path") from error


def write_bytes(uri: str, data: bytes | pa.Buffer) -> None:
    """Write one file, whole or not at all: under a temporary name and renamed, or straight where an upload only shows when it is complete."""
    with write_stream(uri) as stream:
        stream.write(data)


@contextmanager
def write_stream(uri: str) -> Iterator[pa.NativeFile]:
    """One file to be written in pieces, as `write_bytes` does. Where folders cannot be renamed, a writer that raises leaves a cut file: a manifest, written
    last, tells it from a whole one."""
    filesystem, path = open_storage(uri)
    with storage_failures("write", uri):
        if not can_rename(filesystem):
            with filesystem.open_output_stream(path) as stream:
                yield stream
            return
        filesystem.create_dir(posixpath.dirname(path), recursive=True)
        temporary = f"{path}.tmp-{uuid.uuid4().hex[:8]}"
        try:
            with filesystem.open_output_stream(temporary) as stream:
                yield stream
            filesystem.move(temporary, path)
        except BaseException:
            with suppress(OSError):
                filesystem.delete_file(temporary)
            raise


def write_json(uri: str, value: Any) -> None:
    """Write `value` as readable JSON, whole or not at all."""
    write_bytes(uri, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def read_json(uri: str) -> Any:
    """The JSON document at `uri`; broken JSON is an InputError."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:  # no JSON, or no UTF-8
        raise InputError(f"'{uri}' is not JSON ({error})", "a JSON document", "write it again") from error


def exists(uri: str) -> bool:
    """Whether a file or a folder stands at `uri`."""
    filesystem, path = open_storage(uri)
    with storage_failures("look up", uri):
        return filesystem.get_file_info(path).type != pafs.FileType.NotFound


def list_folder(uri: str) -> list[str]:
    """Names of the entries of a folder, sorted; empty when it does not exist."""
    filesystem, path = open_storage(uri)
    with storage_failures("list", uri):
        found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(posixpath.basename(info.path) for info in found)


def remove_folder(uri: str) -> None:
    """Remove a folder and all in it, its manifest first; nothing happens when it does not exist."""
    filesystem, path = open_storage(uri)
    with storage_failures("remove", uri):
        if filesystem.get_file_info(path).type != pafs.FileType.Directory:
            return
        with suppress(FileNotFoundError):
            filesystem.delete_file(posixpath.join(path, MANIFEST))
        filesystem.delete_dir(path)


def write_parquet(uri: str, table: pa.Table, **options: Any) -> None:
    """Write one Parquet file with page checksums, whole or not at all."""
    encoded = pa.BufferOutputStream()
    pq.write_table(table, encoded, write_page_checksum=True, **options)
    write_bytes(uri, encoded.getvalue())


def read_parquet(uri: str, columns: list[str] | None = None) -> pa.Table:
    """One Parquet file or a folder of them as one table, page checksums verified; missing or broken is an InputError."""
    filesystem, path = open_storage(uri)
    try:
        with storage_failures("read", uri):
            return pq.read_table(path, filesystem=filesystem, columns=columns, page_checksum_verification=True)
    except FileNotFoundError as error:
        raise InputError(f"table '{uri}' does not exist", "a Parquet file or folder", "check the path") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"table '{uri}' cannot be read ({error})", "whole Parquet files", "write them again") from error


def fingerprint(*parts: Any) -> str:
    """SHA-256 over the JSON of `parts` and the format version, first 16 hex digits."""
    text = json.dumps([FORMAT_VERSION, *parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_file(filesystem: pafs.FileSystem, path: str) -> dict[str, Any]:
    """Size and SHA-256 of one file, read in pieces."""
    digest, size_bytes = hashlib.sha256(), 0
    with storage_failures("read", path), filesystem.open_input_stream(path) as stream:
        while piece := read_piece(stream, 1 << 22):
            digest.update(piece)
            size_bytes += len(piece)
    return {"size_bytes": size_bytes, "sha256": digest.hexdigest()}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a stage writes."""
    names = ("medley-rec", "ray", "torch", "deepspeed", "transformers", "pyarrow", "tokenizers")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class StagedFolder:
    """A folder being written: visible under its final name only after `commit`. Use through `staged_folder`."""

    def __init__(self, uri: str):
        self.final_uri = absolute_uri(uri)
        self.renames = can_rename(open_storage(self.final_uri)[0])
        self.uri = beside_uri(self.final_uri, f".tmp-{uuid.uuid4().hex[:8]}") if self.renames else self.final_uri
        self.is_committed = False

    def path(self, *parts: str) -> str:
        """URI of a file inside the folder while it is being written; Ray tasks may write there too."""
        return join_uri(self.uri, *parts)

    def commit(
        self, kind: str, identity: str, *, parents: Mapping[str, str], counts: Mapping[str, Any], config: Any, known: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Hash every file, write the manifest, rename the folder into place; returns the manifest. known: see `write_manifest`."""
        manifest = write_manifest(self.uri, kind, identity, parents=parents, counts=counts, config=config, known=known)
        if self.renames:
            filesystem, root = open_storage(self.uri)
            with storage_failures("rename", self.uri):
                _replace_folder(filesystem, root, open_storage(self.final_uri)[1])
        self.is_committed = True
        return manifest


def write_manifest(
    uri: str,
    kind: str,
    identity: str,
    *,
    parents: Mapping[str, str],
    counts: Mapping[str, Any],
    config: Any,
    only: tuple[str, ...] = ("",),
    known: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Hash the files of a folder (or `only` some of its files and subfolders) and write its manifest; what makes the folder finished.

    known: file → size and SHA-256, of files whose writer hashed them as it wrote: they are not read again.
    """
    filesystem, root = open_storage(uri)
    paths: list[str] = []
    with storage_failures("list", uri):
        for name in only:
            info = filesystem.get_file_info(posixpath.join(root, name).rstrip("/"))
            found = filesystem.get_file_info(pafs.FileSelector(info.path, recursive=True)) if info.type == pafs.FileType.Directory else [info]
            paths += [entry.path for entry in found if entry.type == pafs.FileType.File]
    names = [posixpath.relpath(path, root) for path in sorted(paths) if posixpath.basename(path) != MANIFEST]
    manifest = {
        "kind": kind,
        "format_version": FORMAT_VERSION,
        "fingerprint": identity,
        "parents": dict(parents),
        "counts": dict(counts),
        "config": config,
        "versions": versions(),
        "files": {name: (known or {}).get(name) or hash_file(filesystem, posixpath.join(root, name)) for name in names},
    }
    write_bytes(join_uri(uri, MANIFEST), encode_manifest(manifest))
    return manifest


def encode_manifest(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as readable JSON with its own hash: SHA-256 of these bytes where the hash's place is filled with zeros."""
    text = json.dumps({**manifest, OWN_HASH: NO_HASH}, indent=2, sort_keys=True) + "\n"
    return text.replace(NO_HASH, hashlib.sha256(text.encode()).hexdigest()).encode()


def _replace_folder(filesystem: pafs.FileSystem, new: str, final: str) -> None:
    """Rename `new` to `final`; an older folder there is moved aside first and removed last."""
    if filesystem.get_file_info(final).type == pafs.FileType.NotFound:
        filesystem.move(new, final)
        return
    old = f"{final}.tmp-old-{uuid.uuid4().hex[:8]}"
    filesystem.move(final, old)
    filesystem.move(new, final)
    filesystem.delete_dir(old)


@contextmanager
def staged_folder(uri: str) -> Iterator[StagedFolder]:
    """Write a folder that appears whole or not at all; what was not committed is removed on the way out.

    On an object store the folder is absent while it is written, and what an older writer left there is removed first.
    """
    stage = StagedFolder(uri)
    filesystem, root = open_storage(stage.uri)
    if stage.renames:
        with storage_failures("create", stage.uri):
            filesystem.create_dir(root, recursive=True)
    else:
        remove_folder(stage.uri)
    try:
        yield stage
    finally:
        if not stage.is_committed:
            with suppress(OSError, StorageError):  # what ended the writing is worth more than what hinders the cleaning
                remove_folder(stage.uri)


def find_manifest(uri: str) -> dict[str, Any] | None:
    """The manifest of a folder, or None when the folder is absent or was never finished; a damaged one is an InputError."""
    place = join_uri(uri, MANIFEST)
    if not exists(place):
        return None
    raw = read_bytes(place)
    try:
        manifest = json.loads(raw)
    except ValueError as error:  # no JSON, or no UTF-8
        raise InputError(f"'{place}' is not JSON ({error})", "a manifest as it was written", "write the folder again") from error
    if not isinstance(manifest, dict):
        raise InputError(f"'{place}' holds a JSON {type(manifest).__name__}", "a JSON object", "write the folder again")
    own_hash = str(manifest.pop(OWN_HASH, NO_HASH))
    if hashlib.sha256(raw.replace(own_hash.encode(), NO_HASH.encode())).hexdigest() != own_hash:
        raise InputError(f"'{place}' was changed or damaged: its own hash is another", "a manifest as it was written", "write the folder again")
    return manifest


def read_manifest(uri: str, kind: str) -> dict[str, Any]:
    """The manifest of a finished folder of this kind; anything else is an InputError."""
    manifest = find_manifest(uri)
    if manifest is None:
        raise InputError(f"'{uri}' has no {MANIFEST}", f"a finished folder of kind '{kind}'", "run the stage that writes it, or correct the path")
    if manifest.get("kind") != kind or manifest.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"'{uri}' holds kind '{manifest.get('kind')}', format {manifest.get('format_version')}",
            f"kind '{kind}', format {FORMAT_VERSION}",
            "point to another folder, or run the stage again with this version",
        )
    return manifest


def verify_files(uri: str, manifest: Mapping[str, Any], prefix: str = "") -> None:
    """Compare size and SHA-256 of every file under `prefix` with the manifest; a changed byte is an InputError that names the file."""
    filesystem, root = open_storage(uri)
    for name, expected in manifest["files"].items():
        if not name.startswith(prefix):
            continue
        try:
            found = hash_file(filesystem, posixpath.join(root, name))
        except FileNotFoundError as error:
            raise InputError(f"file '{name}' is missing from '{uri}'", "every file of its manifest", "write the folder again") from error
        if found != expected:
            raise InputError(
                f"file '{name}' in '{uri}' has SHA-256 {found['sha256'][:12]}… ({found['size_bytes']} bytes)",
                f"{expected['sha256'][:12]}… ({expected['size_bytes']} bytes) from its manifest",
                "the file was changed or damaged: write the folder again",
            )
