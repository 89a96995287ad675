"""Storage behind a URI: local paths, s3, gs and hdfs through pyarrow; what fails beyond the retries is one kind of error."""

import os
import posixpath
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from medley.schema import InputError

S3_ATTEMPTS = 8
"""Tries of one S3 request, after which it fails. The pause before the n-th repeat is random, at most min(2ⁿ⁻¹, 20) s: half a minute in the mean."""

SHORT_READ_FAULT = "Failed to flush response stream"
"""What pyarrow says when an error's text is longer than the bytes that were asked for: its S3 client does not repeat such a request by itself."""

SERVICES = ("AWS Error", "google::cloud", "HDFS", "Azure")
"""What pyarrow's messages call the services whose answers it reports: such an error is the service's, not the content's."""


class StorageError(RuntimeError):
    """Storage that failed beyond the retries, is full or refuses us: says what failed and where, what was needed, and what to do next.

    No mistake in settings or data: entry points end with exit code 1, without a traceback. It survives pickling between processes.
    """

    def __init__(self, got: str, expected: str, remedy: str):
        super().__init__(got, expected, remedy)
        self.got, self.expected, self.remedy = got, expected, remedy

    def __str__(self) -> str:
        return f"{self.got}; expected {self.expected}; {self.remedy}"


def absolute_uri(uri: str) -> str:
    """`uri` with a relative local path made absolute; URIs with a scheme stay as they are (workers and replicas run elsewhere)."""
    if "://" not in uri:
        return os.path.abspath(os.path.expanduser(uri))
    place, question_mark, options = uri.partition("?")
    return place.rstrip("/") + question_mark + options


def join_uri(uri: str, *parts: str) -> str:
    """`uri/part/…` for local paths and URIs alike; a URI's options (`?endpoint_override=…`) stay at its end."""
    if "://" not in uri:
        return posixpath.join(uri, *parts)
    place, question_mark, options = uri.partition("?")
    return posixpath.join(place, *(quote(part, safe="/=+@:,~!$&'()*;") for part in parts)) + question_mark + options


def beside_uri(uri: str, suffix: str) -> str:
    """The name beside `uri` that ends in `suffix`: `folder.work`."""
    place, question_mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return place + suffix + question_mark + options


def open_storage(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system of a URI (local, s3, gs, hdfs) and the path in it.

    S3 requests are tried S3_ATTEMPTS times. A password in a URI is refused: URIs stand in every manifest and log.
    """
    uri = absolute_uri(uri)
    parts = urlsplit(uri)
    if parts.password:
        raise InputError(
            f"storage '{parts.scheme}://…@{parts.hostname}{parts.path}' has a password in its URI",
            "credentials in the environment or in their file",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or what your store reads) on every node",
        )
    try:
        if parts.scheme == "s3":
            return _open_s3(urlunsplit(("s3", parts.netloc, "/", parts.query, ""))), parts.netloc + unquote(parts.path)
        return pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"storage '{uri}' cannot be opened ({error})",
            "a local path or a URI that pyarrow.fs knows (file, s3, gs, hdfs)",
            "correct the path or the credentials in the environment",
        ) from error


@lru_cache(maxsize=16)
def _open_s3(bucket_uri: str) -> pafs.S3FileSystem:
    """One client per bucket, which keeps its connections."""
    filesystem, _ = pafs.FileSystem.from_uri(bucket_uri)
    # pyarrow's URIs have no word for retries: the same client again, from the options it would be pickled with.
    _, (options,) = filesystem.__reduce__()
    return pafs.S3FileSystem(**options, retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS))


def can_rename(filesystem: pafs.FileSystem) -> bool:
    """Whether a rename happens at once, of folders too. Object stores copy instead, but show an object only when all of it is there."""
    return filesystem.type_name in ("local", "hdfs")


def read_piece(stream: pa.NativeFile, size_bytes: int | None = None) -> bytes:
    """The next bytes of a stream, all that are left by default. Short reads that S3 answers with an error are repeated here, as S3_ATTEMPTS says."""
    for attempt in range(1, S3_ATTEMPTS + 1):
        try:
            return stream.read(size_bytes)
        except OSError as error:
            if attempt == S3_ATTEMPTS or SHORT_READ_FAULT not in str(error):
                raise
            time.sleep(random.random() * min(2 ** (attempt - 1), 20))
    raise AssertionError("the last try returns or raises")


@contextmanager
def storage_failures(action: str, uri: str) -> Iterator[None]:
    """What storage could not do, after the retries, as a StorageError; a missing file and damaged content pass as they are.

    action: "read", "write", …, for the message.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno is None and not any(service in str(error) for service in SERVICES):
            raise
        raise StorageError(
            f"storage failed to {action} '{uri}' ({' '.join(str(error).split())})",
            "storage that answers, lets us in and has room",
            "check disk, bucket, credentials and network, then run the same command again: what is finished is kept",
        ) from error
