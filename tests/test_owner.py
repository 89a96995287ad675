"""Two processes do not work on one prepared set, and a dead one keeps nobody out."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from medley import owner
from medley.owner import owned
from medley.schema import InputError


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(owner, "SILENT_SECONDS", 3.0)


def test_who_comes_second_is_refused_and_the_file_is_gone_at_the_end(tmp_path: Path):
    uri = str(tmp_path / "set.owner")
    with owned(uri, "run"), pytest.raises(InputError, match=r"works on this run, since.*; expected one process at a time; wait"), owned(uri, "run"):
        pass
    assert not list(tmp_path.iterdir())


def test_an_owner_that_ended_on_this_machine_is_followed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(owner, "SILENT_SECONDS", 1e9)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "set.owner").write_text(json.dumps({"host": socket.gethostname(), "process": ended.pid}))
    with owned(str(tmp_path / "set.owner"), "prepared set"):
        pass


def test_an_owner_elsewhere_that_gives_no_sign_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(owner, "SILENT_SECONDS", 0.1)
    (tmp_path / "set.owner").write_text(json.dumps({"host": "elsewhere", "process": 1}))
    with owned(str(tmp_path / "set.owner"), "prepared set"):
        pass
