"""Everything that is written to a disk can be written to S3-compatible storage: the manifest protocol, checkpoints, the road from tables to a run."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from medley.data.convert import convert
from medley.data.convert.synthetic import SyntheticConfig
from medley.data.prepare import DataConfig, prepare
from medley.data.prepared import PreparedData
from medley.manifest import (
    MANIFEST,
    exists,
    find_manifest,
    list_folder,
    read_bytes,
    read_manifest,
    read_parquet,
    remove_folder,
    staged_folder,
    verify_files,
    write_bytes,
    write_parquet,
)
from medley.media import MediaConfig
from medley.schema import InputError
from medley.storage import absolute_uri, beside_uri, join_uri, open_storage
from medley.training.checkpoint_choice import checkpoint_names, read_newest, remove_old
from tests.conftest import TINY_MEDIA
from tests.storage_faults import FACTS, save_checkpoint, write_folder


def test_a_uri_keeps_its_options_at_its_end():
    uri = absolute_uri("s3://bucket/a/?scheme=http")
    assert uri == "s3://bucket/a?scheme=http"
    assert join_uri(uri, "b", "c.txt") == "s3://bucket/a/b/c.txt?scheme=http"
    assert join_uri("/tmp/what?", "b") == "/tmp/what?/b"
    assert beside_uri(uri, ".work") == "s3://bucket/a.work?scheme=http"
    assert beside_uri("/tmp/a", ".work") == "/tmp/a.work"
    assert open_storage(join_uri(uri + "&region=r", "b c%2e?#ü.txt"))[1] == "bucket/a/b c%2e?#ü.txt"


def test_a_password_in_a_uri_is_refused_and_not_repeated():
    with pytest.raises(InputError, match=r"has a password in its URI; expected credentials in the environment") as caught:
        open_storage("s3://key:topsecret@bucket/a")
    assert "topsecret" not in str(caught.value)


def test_a_folder_on_an_object_store_is_whole_or_absent(s3_root: str):
    uri = join_uri(s3_root, "out")
    with staged_folder(uri) as stage:
        write_bytes(stage.path("deep", "a.txt"), b"abc")
        write_parquet(stage.path("t.parquet"), pa.table({"x": [1, 2]}))
        assert find_manifest(uri) is None
        with pytest.raises(InputError, match=r"has no manifest\.json"):
            read_manifest(uri, "thing")
        written = stage.commit("thing", "f", **FACTS)
    manifest = read_manifest(uri, "thing")
    assert manifest == written
    assert sorted(manifest["files"]) == ["deep/a.txt", "t.parquet"]
    verify_files(uri, manifest)
    assert read_bytes(join_uri(uri, "deep/a.txt")) == b"abc"
    assert read_parquet(join_uri(uri, "t.parquet"))["x"].to_pylist() == [1, 2]
    assert list_folder(uri) == ["deep", MANIFEST, "t.parquet"]


def test_what_a_killed_writer_left_on_an_object_store_gets_into_no_manifest(s3_root: str):
    killed = staged_folder(s3_root)
    write_bytes(killed.__enter__().path("half.txt"), b"half")  # never left: what a kill does
    assert find_manifest(s3_root) is None
    assert write_folder(s3_root, {"a.txt": b"abc"})["files"].keys() == {"a.txt"}
    assert list_folder(s3_root) == ["a.txt", MANIFEST]


def test_a_failing_writer_leaves_nothing_on_an_object_store(s3_root: str):
    def fail() -> None:
        with staged_folder(s3_root) as stage:
            write_bytes(stage.path("a.txt"), b"abc")
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="memory"):
        fail()
    assert list_folder(s3_root) == []


def test_a_replaced_folder_on_an_object_store_is_absent_until_the_new_one_is_whole(s3_root: str):
    write_folder(s3_root, {"old.txt": b"old"})
    with staged_folder(s3_root) as stage:
        assert find_manifest(s3_root) is None
        write_bytes(stage.path("new.txt"), b"new")
        stage.commit("thing", "g", **FACTS)
    assert list_folder(s3_root) == [MANIFEST, "new.txt"]
    remove_folder(s3_root)
    assert not exists(s3_root)


def test_checkpoints_on_an_object_store_are_written_chosen_and_removed(s3_root: str):
    names = [save_checkpoint(s3_root, step) for step in (1, 2, 3)]
    write_bytes(join_uri(s3_root, "step-00000004", "part-00000.safetensors"), b"half")
    assert checkpoint_names(s3_root) == names
    newest = read_newest(s3_root)
    assert newest is not None
    assert (newest.name, newest.state.tensor("weight")[0].item()) == ("step-00000003", 3.0)
    write_bytes(join_uri(s3_root, "step-00000003", "part-00000.safetensors"), b"damaged")
    older = read_newest(s3_root)
    assert older is not None
    assert older.name == "step-00000002"
    remove_old(s3_root, "step-00000003", keep=1, best="step-00000001")
    assert checkpoint_names(s3_root) == ["step-00000001", "step-00000003"]


@pytest.mark.long
def test_a_run_on_an_object_store_ends_with_the_weights_of_one_on_a_disk(ray_session: None, s3_root: str, tiny_prepared: str, tiny_tables: str, tmp_path: Path):
    from medley.config import make_run
    from medley.training.run import fit

    weights = []
    for storage_root in (str(tmp_path), s3_root):
        values = {
            "storage": storage_root,
            "name": "tiny",
            "inputs": {"prepared": tiny_prepared, "tables": tiny_tables},
            "model": {"dimension": 4, "encoders": {"text": {"kind": "subword", "vocabulary_size": 50, "dimension": 4}}},
            "train": {"epochs": 1, "micro_batch_size": 64, "num_micro_batches": 2, "workers": 2},
        }
        run = make_run(values, "test")
        fit(run)
        assert fit(run)["reused"]
        weights.append(read_manifest(run.run_uri, "run")["files"]["weights.safetensors"])
    assert weights[0] == weights[1]
    assert list_folder(s3_root) == ["ray", "runs"]


def test_convert_prepare_and_stream_on_an_object_store_give_the_same_bytes_as_on_a_disk(
    ray_session: None, s3_root: str, tiny_tables: str, tiny_prepared: str, tmp_path: Path
):
    from medley.data.fetching import fetched_windows
    from medley.data.node_cache import NodeCache

    config = SyntheticConfig(num_items=120, num_users=60, interactions_per_user=12, image_side_pixels=16, clip_seconds=0.25)
    tables = convert(config, join_uri(s3_root, "tables"))["tables"]
    data_config = DataConfig(media=MediaConfig(**TINY_MEDIA))
    uri = prepare(tables, join_uri(s3_root, "prepared"), data_config, seed=0)["prepared"]
    local, remote = PreparedData.open(tiny_prepared), PreparedData.open(uri)
    assert remote.manifest["files"] == local.manifest["files"]
    assert list_folder(join_uri(s3_root, "prepared")) == [remote.identity]
    assert prepare(tables, join_uri(s3_root, "prepared"), data_config, seed=0)["reused"]
    windows = [np.array(items) for items in ([3, 5, 119], [0, 64])]
    streamed = []
    for data, cache in ((local, NodeCache()), (remote, NodeCache(str(tmp_path)))):
        fetched = fetched_windows(data, ["image", "audio"], windows, cache)
        streamed.append([[value and bytes(value) for column in ("image", "audio") for value in source.values(items_W, column)] for items_W, source in fetched])
    assert streamed[0] == streamed[1]
    assert [len(window) for window in streamed[1]] == [6, 4]
    assert len(list(tmp_path.iterdir())) == 1
