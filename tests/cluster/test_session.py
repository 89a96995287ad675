"""Joining and starting Ray: a local session in a process of its own, and the addresses that are refused."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from medley.cluster.session import is_local_path

REPOSITORY = Path(__file__).resolve().parents[2]

SESSION = """
import json, os
import ray
from ray.data import DataContext
from medley.cluster.session import is_remote_cluster, ray_session, require_shared_storage

@ray.remote
def look():
    import shutil, medley
    names = ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "RAY_AUTH_MODE", "OMP_NUM_THREADS", "PATH")
    return {**{name: os.environ.get(name) for name in names}, "medley": list(medley.__path__), "ninja": shutil.which("ninja")}

path_before = os.environ["PATH"]
with ray_session(object_store_bytes=100_000_000):
    with ray_session():
        seen = ray.get(look.remote())
    assert ray.is_initialized(), "the inner session shut the outer one down"
    require_shared_storage("./out")
    seen["is_remote"] = is_remote_cluster()
    seen["cpus"] = ray.cluster_resources()["CPU"]
    seen["bars"] = DataContext.get_current().enable_progress_bars
assert not ray.is_initialized()
seen["restored"] = os.environ["PATH"] == path_before and "TOKENIZERS_PARALLELISM" not in os.environ
seen["token_length"] = len(os.environ["RAY_AUTH_TOKEN"])
print(json.dumps(seen))
"""


def test_a_local_session_gives_workers_their_environment_and_is_reused_when_nested(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY / "src"), "HF_HUB_OFFLINE": "0"}
    script = tmp_path / "session.py"
    script.write_text(SESSION)
    finished = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    seen = json.loads(finished.stdout.splitlines()[-1])
    assert seen["HF_HUB_OFFLINE"] == "0", "the user's own choice was overruled"
    assert (seen["TOKENIZERS_PARALLELISM"], seen["OMP_NUM_THREADS"], seen["RAY_AUTH_MODE"]) == ("false", "1", "token")
    assert seen["medley"] == [str(REPOSITORY / "src" / "medley")]
    assert seen["ninja"] == str(Path(sys.executable).parent / "ninja")
    assert (seen["is_remote"], seen["bars"], seen["restored"]) == (False, False, True)
    assert seen["cpus"] >= 8
    assert seen["token_length"] == 64
    assert not (tmp_path / ".ray").exists(), "a token was written to the home directory"


REFUSED = """
import json, sys, time
import medley.cluster.session as session
from medley.schema import InputError

session.CONNECT_SECONDS = 2
found = []
for address in sys.argv[1:]:
    began = time.monotonic()
    try:
        with session.ray_session(address):
            message = "joined"
    except InputError as error:
        message = str(error)
    found.append((message, time.monotonic() - began))
print(json.dumps(found))
"""


def test_addresses_of_another_kind_or_without_an_answer_are_refused_within_15_seconds(tmp_path: Path) -> None:
    closed, silent = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    nobody, no_ray = (f"127.0.0.1:{server.getsockname()[1]}" for server in (closed, silent))
    closed.close()
    script = tmp_path / "refused.py"
    script.write_text(REFUSED)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    # In a process of its own: in this one a session may be open, which an inner one would join.
    command = [sys.executable, str(script), "http://127.0.0.1:8265", "ray://10.0.0.5:10001", nobody, no_ray]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    silent.close()
    assert finished.returncode == 0, finished.stderr
    http, client, *unanswered = json.loads(finished.stdout.splitlines()[-1])
    assert all("HOST:PORT of the head's GCS" in message for message, _ in (http, client))
    assert [f"no Ray answers at '{address}'" in message for address, (message, _) in zip((nobody, no_ray), unanswered, strict=True)] == [True, True]
    assert max(seconds for _, seconds in (http, client, *unanswered)) < 15


def test_only_paths_and_file_uris_are_local() -> None:
    assert all(is_local_path(uri) for uri in ("./out", "/data", "~/out", "file:///data"))
    assert not any(is_local_path(uri) for uri in ("s3://bucket/x", "gs://bucket/x", "hdfs://host/x"))
