"""Joining and starting Ray: a local session in a process of its own, and the addresses that are refused."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medley.cluster.session import is_local_path, ray_session
from medley.schema import InputError

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


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://10.0.0.5:10001"])
def test_an_address_of_another_kind_is_refused_at_once(address: str) -> None:
    with pytest.raises(InputError, match="HOST:PORT of the head's GCS"), ray_session(address):
        pass


@pytest.mark.parametrize("is_listening", [False, True])
def test_an_address_that_does_not_answer_is_refused_within_15_seconds(monkeypatch: pytest.MonkeyPatch, is_listening: bool) -> None:
    monkeypatch.setattr("medley.cluster.session.CONNECT_SECONDS", 2)
    server = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{server.getsockname()[1]}"
    if not is_listening:
        server.close()
    began = time.monotonic()
    with pytest.raises(InputError, match=f"no Ray answers at '{address}'"), ray_session(address):
        pass
    assert time.monotonic() - began < 15
    server.close()


def test_only_paths_and_file_uris_are_local() -> None:
    assert all(is_local_path(uri) for uri in ("./out", "/data", "~/out", "file:///data"))
    assert not any(is_local_path(uri) for uri in ("s3://bucket/x", "gs://bucket/x", "hdfs://host/x"))
