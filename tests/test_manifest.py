"""Folders are whole or absent, and what changed after they were written is noticed by name."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medley.manifest import (
    MANIFEST,
    absolute_uri,
    encode_manifest,
    exists,
    find_manifest,
    fingerprint,
    list_folder,
    read_bytes,
    read_json,
    read_manifest,
    read_parquet,
    staged_folder,
    verify_files,
    write_bytes,
    write_json,
    write_manifest,
    write_parquet,
)
from medley.schema import InputError

FACTS = {"parents": {"tables": "abc"}, "counts": {"rows": 2}, "config": {"seed": 0}}


def write_folder(uri: str, files: dict[str, bytes], kind: str = "thing", identity: str = "0123456789abcdef") -> dict:
    """A finished folder with these files."""
    with staged_folder(uri) as stage:
        for name, content in files.items():
            write_bytes(stage.path(name), content)
        return stage.commit(kind, identity, **FACTS)


def test_a_committed_folder_stands_whole_under_its_name_with_every_hash(tmp_path: Path):
    written = write_folder(str(tmp_path / "out"), {"a.txt": b"abc", "deep/b.txt": b""})
    manifest = read_manifest(str(tmp_path / "out"), "thing")
    assert manifest == written
    assert manifest["files"] == {
        "a.txt": {"size_bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        "deep/b.txt": {"size_bytes": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    }
    assert (manifest["kind"], manifest["fingerprint"], manifest["parents"], manifest["counts"]) == ("thing", "0123456789abcdef", {"tables": "abc"}, {"rows": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    verify_files(str(tmp_path / "out"), manifest)


def test_a_failure_before_the_commit_leaves_nothing(tmp_path: Path):
    def fail() -> None:
        with staged_folder(str(tmp_path / "out")) as stage:
            write_bytes(stage.path("a.txt"), b"abc")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_process_killed_before_the_manifest_leaves_no_visible_folder(tmp_path: Path):
    killed = staged_folder(str(tmp_path / "out"))
    stage = killed.__enter__()  # never left: what a kill does
    write_bytes(stage.path("a.txt"), b"abc")
    assert find_manifest(str(tmp_path / "out")) is None
    assert not exists(str(tmp_path / "out"))
    with pytest.raises(InputError, match=r"has no manifest\.json; expected a finished folder of kind 'thing'; run the stage"):
        read_manifest(str(tmp_path / "out"), "thing")


def test_a_process_killed_before_the_rename_leaves_no_visible_folder_and_the_next_one_succeeds(tmp_path: Path):
    killed = staged_folder(str(tmp_path / "out"))
    stage = killed.__enter__()
    write_bytes(stage.path("a.txt"), b"half")
    write_manifest(stage.uri, "thing", "f", **FACTS)
    assert find_manifest(str(tmp_path / "out")) is None
    write_folder(str(tmp_path / "out"), {"a.txt": b"whole"})
    assert read_bytes(str(tmp_path / "out" / "a.txt")) == b"whole"
    assert read_manifest(str(tmp_path / "out"), "thing")["files"].keys() == {"a.txt"}


def test_a_folder_written_in_place_without_a_manifest_is_unfinished(tmp_path: Path):
    write_bytes(str(tmp_path / "out" / "a.txt"), b"abc")
    assert find_manifest(str(tmp_path / "out")) is None


def test_a_replaced_folder_holds_only_the_new_files(tmp_path: Path):
    write_folder(str(tmp_path / "out"), {"old.txt": b"old"})
    write_folder(str(tmp_path / "out"), {"new.txt": b"new"})
    assert list_folder(str(tmp_path / "out")) == [MANIFEST, "new.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_manifest_over_some_files_leaves_the_others_out(tmp_path: Path):
    for name in ("keep.txt", "log.txt", "deep/in.txt"):
        write_bytes(str(tmp_path / name), b"x")
    manifest = write_manifest(str(tmp_path), "thing", "f", **FACTS, only=("keep.txt", "deep"))
    assert manifest["files"].keys() == {"keep.txt", "deep/in.txt"}


def test_a_changed_byte_is_refused_and_named(tmp_path: Path):
    manifest = write_folder(str(tmp_path / "out"), {"a.txt": b"abc", "b.txt": b"abc"})
    (tmp_path / "out" / "b.txt").write_bytes(b"abd")
    with pytest.raises(InputError, match=r"file 'b\.txt' in .* has SHA-256 .* \(3 bytes\); expected ba7816bf8f01… \(3 bytes\)") as caught:
        verify_files(str(tmp_path / "out"), manifest)
    assert caught.value.remedy == "the file was changed or damaged: write the folder again"
    verify_files(str(tmp_path / "out"), manifest, prefix="a")


def test_a_missing_file_is_refused_and_named(tmp_path: Path):
    manifest = write_folder(str(tmp_path / "out"), {"a.txt": b"abc"})
    (tmp_path / "out" / "a.txt").unlink()
    with pytest.raises(InputError, match=r"file 'a\.txt' is missing from"):
        verify_files(str(tmp_path / "out"), manifest)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path):
    write_folder(str(tmp_path / "out"), {}, kind="tables")
    with pytest.raises(InputError, match="holds kind 'tables', format 1; expected kind 'prepared', format 1"):
        read_manifest(str(tmp_path / "out"), "prepared")


def test_a_folder_of_another_format_version_is_refused(tmp_path: Path):
    (tmp_path / MANIFEST).write_bytes(encode_manifest({"kind": "thing", "format_version": 99}))
    with pytest.raises(InputError, match="holds kind 'thing', format 99"):
        read_manifest(str(tmp_path), "thing")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xff\xff", b"[1, 2]", b'"text"'])
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_manifest(str(tmp_path), "thing")


def test_a_manifest_that_was_changed_or_lacks_its_own_hash_is_refused(tmp_path: Path):
    write_folder(str(tmp_path / "out"), {"a.txt": b"abc"})
    place = tmp_path / "out" / MANIFEST
    content = place.read_bytes()
    for changed in (content.replace(b'"rows": 2', b'"rows": 3'), content.replace(b'"seed": 0', b'"seed":  0'), content.replace(b'"sha256": ', b'"sha255": ')):
        place.write_bytes(changed)
        with pytest.raises(InputError, match=r"manifest\.json' was changed or damaged: its own hash is another; expected a manifest as it was written"):
            find_manifest(str(tmp_path / "out"))
    place.write_bytes(content)
    assert find_manifest(str(tmp_path / "out")) is not None


def test_a_written_file_replaces_the_old_one_and_leaves_no_temporary_name(tmp_path: Path):
    for content in (b"one", b"two"):
        write_bytes(str(tmp_path / "new" / "a.bin"), content)
    assert read_bytes(str(tmp_path / "new" / "a.bin")) == b"two"
    assert list_folder(str(tmp_path / "new")) == ["a.bin"]


def test_json_and_parquet_come_back_as_written(tmp_path: Path):
    write_json(str(tmp_path / "a.json"), {"ü": [1, None, 0.5]})
    assert read_json(str(tmp_path / "a.json")) == {"ü": [1, None, 0.5]}
    table = pa.table({"x": [1, 2, 3], "y": ["a", None, "c"]})
    write_parquet(str(tmp_path / "t.parquet"), table)
    assert read_parquet(str(tmp_path / "t.parquet")).equals(table)
    assert read_parquet(str(tmp_path / "t.parquet"), columns=["y"]).column_names == ["y"]


def test_a_missing_or_broken_file_is_a_users_mistake(tmp_path: Path):
    with pytest.raises(InputError, match="does not exist"):
        read_bytes(str(tmp_path / "absent"))
    with pytest.raises(InputError, match="does not exist"):
        read_parquet(str(tmp_path / "absent.parquet"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="cannot be read"):
        read_parquet(str(tmp_path / "bad.parquet"))
    with pytest.raises(InputError, match="storage 'nope://x/y' cannot be opened"):
        read_bytes("nope://x/y")


def test_a_flipped_byte_in_a_parquet_page_is_noticed(tmp_path: Path):
    path = tmp_path / "t.parquet"
    write_parquet(str(path), pa.table({"x": list(range(1000))}), compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[pq.read_metadata(path).row_group(0).column(0).data_page_offset + 200] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        read_parquet(str(path))


def test_relative_paths_become_absolute_and_uris_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("out/") == str(tmp_path / "out")
    assert absolute_uri("s3://bucket/prefix/") == "s3://bucket/prefix"
    assert absolute_uri("~/x") == str(Path.home() / "x")


def test_a_fingerprint_depends_on_the_values_and_not_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert len({fingerprint(), fingerprint(1), fingerprint("1"), fingerprint([1]), fingerprint(1, 1)}) == 5
    # Hard-coded, because a fingerprint written last year must still be found: SHA-256 of the text [1,"x"].
    assert fingerprint("x") == "b1aafb0d4ee706f1"
