"""Faults of storage are retried within a budget, then a command fails whole: with a message of three parts, and nothing half written."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from medley import storage
from medley.data.tables import open_tables
from medley.manifest import (
    find_manifest,
    list_folder,
    read_bytes,
    read_manifest,
    read_parquet,
    verify_files,
    write_bytes,
    write_parquet,
)
from medley.schema import InputError
from medley.storage import StorageError, join_uri
from medley.training.checkpoint_choice import read_newest
from tests.storage_faults import Fault, FaultKind, FaultProxy, save_checkpoint, storage_uri, write_folder


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tries instead of eight, so that giving up takes a second and not half a minute."""
    monkeypatch.setattr(storage, "S3_ATTEMPTS", 2)


def test_a_changed_byte_on_the_way_is_noticed(s3_root: str, s3_proxy: FaultProxy):
    manifest = write_folder(s3_root, {"a.txt": b"abc"})
    s3_proxy.faults = [Fault("flip", 1, "GET", "a.txt")]
    place = s3_proxy.uri("test_a_changed_byte_on_the_way_is_noticed")
    with pytest.raises(InputError, match=r"file 'a\.txt' in .* has SHA-256"):
        verify_files(place, manifest)
    assert len(s3_proxy.spoiled) == 1
    verify_files(place, manifest)


@pytest.mark.parametrize("size_bytes", [100_000, 3])
@pytest.mark.parametrize("kind", ["500", "503", "reset", "cut", "slow"])
def test_a_fault_is_retried_and_the_content_is_right(kind: FaultKind, size_bytes: int, s3_proxy: FaultProxy):
    """3 bytes are fewer than an error's text has."""
    content = np.random.default_rng(0).bytes(size_bytes)
    place = s3_proxy.uri(f"retried/{kind}.bin")
    if kind != "cut":
        s3_proxy.faults = [Fault(kind, 1, "PUT", seconds=1.0)]
    write_bytes(place, content)
    s3_proxy.faults.append(Fault(kind, 1, "GET", r"\.bin", seconds=1.0))
    assert read_bytes(place) == content
    assert len(s3_proxy.spoiled) == (1 if kind == "cut" else 2)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["500", "503", "reset", "cut", "hang"])
def test_five_faults_of_one_request_lose_nothing_and_ten_fail_whole(kind: FaultKind, s3_proxy: FaultProxy):
    """The first has 5 repeats, of 15 s in the mean; giving up takes 8 tries, 35 s in the mean."""
    uri = s3_proxy.uri(f"patience/{kind}")
    method = "GET" if kind == "cut" else "PUT|GET"
    s3_proxy.faults = [Fault(kind, 5, method, r"a\.bin", seconds=5.0)]
    manifest = write_folder(uri, {"a.bin": bytes(100_000)})
    verify_files(uri, manifest)
    assert len(s3_proxy.spoiled) == 5
    s3_proxy.faults = [Fault(kind, 10, method, r"b\.bin", seconds=5.0)]
    with pytest.raises(StorageError, match="storage failed to"):
        write_folder(uri, {"b.bin": bytes(100_000)})
    assert find_manifest(uri) is None


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("place", [r"a\.bin", "manifest"])
def test_faults_beyond_the_budget_leave_nothing_half_written_and_the_next_try_succeeds(place: str, s3_proxy: FaultProxy):
    uri = s3_proxy.uri(f"beyond/{place[0]}")
    s3_proxy.faults = [Fault("503", 2, "PUT", place)]
    with pytest.raises(StorageError) as caught:
        write_folder(uri, {"a.bin": bytes(1000)})
    assert caught.value.got.startswith("storage failed to write 's3://bucket/beyond/")
    assert caught.value.expected == "storage that answers, lets us in and has room"
    assert caught.value.remedy.endswith("then run the same command again: what is finished is kept")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert len(s3_proxy.spoiled) == 2
    assert list_folder(uri) == []
    write_folder(uri, {"a.bin": bytes(1000)})
    verify_files(uri, read_manifest(uri, "thing"))


@pytest.mark.usefixtures("impatient")
def test_an_outage_is_no_damage_of_a_table(s3_proxy: FaultProxy):
    """A message that says 'write the tables again' would have somebody do so."""
    uri = s3_proxy.uri("outage")
    write_parquet(join_uri(uri, "items", "a.parquet"), pa.table({"item_id": ["a"], "text": ["b"]}))
    write_parquet(join_uri(uri, "interactions", "a.parquet"), pa.table({"user_id": ["u"], "item_id": ["a"]}))
    open_tables(uri)
    for read in (lambda: open_tables(uri), lambda: read_parquet(join_uri(uri, "items", "a.parquet"))):
        s3_proxy.faults, s3_proxy.spoiled = [Fault("503", 4, "GET|HEAD", r"items/a\.parquet")], []
        with pytest.raises(StorageError, match="storage failed to"):
            read()
        assert s3_proxy.spoiled


@pytest.mark.usefixtures("impatient")
def test_an_outage_ends_a_resume_instead_of_choosing_an_older_checkpoint(s3_proxy: FaultProxy):
    folder = s3_proxy.uri("resume")
    for step in (1, 2):
        save_checkpoint(folder, step)
    s3_proxy.faults = [Fault("503", 2, "GET", "step-00000002/part")]
    with pytest.raises(StorageError, match="storage failed to read"):
        read_newest(folder)
    assert len(s3_proxy.spoiled) == 2
    newest = read_newest(folder)
    assert newest is not None
    assert newest.name == "step-00000002"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("file", ["part-00000.safetensors", "part-00000.json", "state", "manifest"])
def test_a_checkpoint_that_storage_refuses_leaves_the_one_before(file: str, s3_proxy: FaultProxy):
    folder = s3_proxy.uri(f"refused-{file}")
    save_checkpoint(folder, 1)
    s3_proxy.faults = [Fault("500", 2, "PUT", f"step-00000002/{file}")]
    with pytest.raises(StorageError):
        save_checkpoint(folder, 2)
    assert len(s3_proxy.spoiled) == 2
    newest = read_newest(folder)
    assert newest is not None
    assert newest.name == "step-00000001"
    assert list_folder(folder) == ["step-00000001"]


def test_storage_that_does_not_exist_is_named(s3_endpoint: str):
    with pytest.raises(StorageError, match=r"storage failed to write 's3://nowhere/a\?.*NO_SUCH_BUCKET"):
        write_bytes(storage_uri(s3_endpoint, "a").replace("s3://bucket", "s3://nowhere"), b"")


FULL_DISK = """
import sys
import pyarrow as pa
from medley.manifest import list_folder, read_bytes, write_bytes, write_parquet
from medley.storage import StorageError
from medley.training.checkpoint_choice import read_newest
from tests.storage_faults import save_checkpoint, write_folder

folder = sys.argv[1]
save_checkpoint(f"{folder}/checkpoints", 1)
write_bytes(f"{folder}/old", b"old")
before = list_folder(folder)
big = bytes(4_000_000)
for write in (
    lambda: write_bytes(f"{folder}/old", big),
    lambda: write_parquet(f"{folder}/t.parquet", pa.table({"x": [big]}), compression="none"),
    lambda: write_folder(f"{folder}/out", {"small": b"abc", "big": big}),
):
    try:
        write()
    except StorageError as error:
        assert "No space left" in str(error), error
    else:
        raise AssertionError("the disk was not full")
    assert list_folder(folder) == before, list_folder(folder)
assert read_bytes(f"{folder}/old") == b"old"
write_bytes(f"{folder}/filler", bytes(2 * 2**20 - 8 * 4096))
try:
    save_checkpoint(f"{folder}/checkpoints", 2)
except StorageError:
    assert list_folder(f"{folder}/checkpoints") == ["step-00000001"]
else:
    raise AssertionError("the disk was not full")
assert read_newest(f"{folder}/checkpoints").name == "step-00000001"
"""


def test_a_full_disk_leaves_what_was_there_and_no_half_files(tmp_path: Path):
    mount = f"mount -t tmpfs -o size=2m tmpfs '{tmp_path}'"
    alone = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user", "--user"])]
    if subprocess.run([*alone, "sh", "-c", mount], capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount a small file system")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [*alone, "sh", "-c", f"{mount} && exec '{sys.executable}' -c \"$0\" '{tmp_path}'", FULL_DISK]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
