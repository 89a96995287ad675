"""An S3 server for tests, and a proxy before it that spoils a stated number of answers, both on 127.0.0.1; and small things to store."""

import http.client
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.request import Request, urlopen

import pytest
import torch

from medley.manifest import staged_folder, write_bytes
from medley.training.checkpoint import Progress
from medley.training.checkpoint_parts import Snapshot, TensorSlice
from medley.training.checkpoint_writing import CheckpointWriter
from medley.training.seat import Seat

FaultKind = Literal["500", "503", "reset", "hang", "slow", "cut", "flip"]
"""500, 503: that status, the request goes no further. reset: the connection ends without an answer. hang: no answer for `seconds`, then the
connection ends. slow: the right answer after `seconds`. cut: half the body. flip: one bit of the body changed."""

BUCKET = "bucket"

FACTS = {"parents": {}, "counts": {}, "config": {}}
"""of a manifest that needs none"""

ERROR_BODY = b"<Error><Code>InternalError</Code><Message>We encountered an internal error. Please try again.</Message></Error>"


@dataclass
class Fault:
    """The next `count` requests whose method and path match are spoiled."""

    kind: FaultKind
    count: int
    method: str = "GET|PUT|POST|HEAD|DELETE"
    path: str = ""
    seconds: float = 0.0


class FaultProxy(ThreadingHTTPServer):
    """Passes requests on to the server at `target` (HOST:PORT); `faults` says which it spoils, `spoiled` holds what it did."""

    daemon_threads = True

    def __init__(self, target: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.faults: list[Fault] = []
        self.spoiled: list[tuple[str, str, str]] = []
        self.lock = threading.Lock()

    def uri(self, path: str = "") -> str:
        """A pyarrow URI of a path in the bucket, by way of this proxy."""
        return storage_uri(f"127.0.0.1:{self.server_port}", path)

    def next_fault(self, method: str, path: str) -> Fault | None:
        """The fault this request meets, counted."""
        with self.lock:
            for fault in self.faults:
                if fault.count > 0 and re.fullmatch(fault.method, method) and re.search(fault.path, path):
                    fault.count -= 1
                    self.spoiled.append((fault.kind, method, path))
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def log_message(self, *_: object) -> None:
        pass

    def _pass_on(self) -> None:
        body = self._body()
        fault = self.server.next_fault(self.command, self.path)
        kind = fault.kind if fault else None
        if kind in ("500", "503"):
            self._answer(int(kind), {"Content-Type": "application/xml"}, ERROR_BODY)
            return
        if fault and kind in ("hang", "slow"):
            time.sleep(fault.seconds)
        if kind in ("reset", "hang"):
            self._reset()
            return
        connection = http.client.HTTPConnection(self.server.target)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in ("connection", "transfer-encoding", "content-length")}
        if self.command == "HEAD":
            kept["Content-Length"] = answer.getheader("Content-Length") or "0"
        if kind == "flip":
            content = content[:-1] + bytes([content[-1] ^ 1])
        self._answer(answer.status, kept, content, is_cut=kind == "cut")
        connection.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _answer(self, status: int, headers: dict[str, str], content: bytes, is_cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if is_cut else content)
        if is_cut:
            self._reset()

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


def storage_uri(endpoint: str, path: str = "") -> str:
    """A pyarrow URI of a path in the test bucket at HOST:PORT."""
    return f"s3://{BUCKET}/{path}?endpoint_override={endpoint}&scheme=http&region=us-east-1"


@contextmanager
def s3_server() -> Iterator[str]:
    """HOST:PORT of a moto server with one empty bucket; it runs in its own environment, `.venv/moto`, or the test is skipped."""
    program = Path(sys.prefix) / "moto" / "bin" / "moto_server"
    if not program.exists():
        pytest.skip(f"'{program}' is missing: `make test` brings it")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    server = subprocess.Popen([program, "-H", "127.0.0.1", "-p", endpoint.split(":")[1]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _make_bucket(endpoint, give_up=time.monotonic() + 60)
        yield endpoint
    finally:
        server.kill()
        server.wait()


def _make_bucket(endpoint: str, give_up: float) -> None:
    while True:
        try:
            urlopen(Request(f"http://{endpoint}/{BUCKET}", method="PUT"), timeout=5).close()
            return
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)


@contextmanager
def fault_proxy(endpoint: str) -> Iterator[FaultProxy]:
    """A proxy before the server at `endpoint`, without faults until the test adds some."""
    proxy = FaultProxy(endpoint)
    threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()


def write_folder(uri: str, files: dict[str, bytes]) -> dict:
    """A finished folder with these files."""
    with staged_folder(uri) as stage:
        for name, content in files.items():
            write_bytes(stage.path(name), content)
        return stage.commit("thing", "f", **FACTS)


def save_checkpoint(folder: str, step: int) -> str:
    """A checkpoint of one weight, whose value is the step."""
    slices = [TensorSlice("weight", (1000,), 0, torch.full((1000,), float(step))), TensorSlice("weight/exp_avg", (3,), 0, torch.zeros(3))]
    with CheckpointWriter(folder, "f", {"workers": 1}, keep=99, seat=Seat(0, 1), most_failures=1) as writer:
        return writer.save(lambda: Snapshot(slices, step), Progress(step=step), None)
