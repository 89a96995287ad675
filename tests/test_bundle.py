"""A bundle comes back as it was written, or is refused by the name of what is wrong."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from medley.bundle import BUNDLE_KIND, Bundle, bundle_run, read_bundle, write_bundle
from medley.data.item_lists import ItemLists
from medley.data.prepared import PreparedData
from medley.index.scorer import Scorer
from medley.manifest import staged_folder, write_bytes, write_json
from medley.schema import InputError

SCORER = Scorer(
    user_vectors_VD=torch.tensor([[1.0, 0.0], [0.5, 0.25]]),
    item_vectors_ND=torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
    user_bias_V=torch.tensor([0.1, 0.2]),
    item_bias_N=torch.tensor([0.0, 1.0, 2.0]),
    global_bias=torch.tensor(0.5),
)
ITEMS = pa.table({"item_index": pa.array([0, 1, 2], pa.int32()), "item_id": ["a", "ß", "c"], "title": ["A", None, "C"], "train_count": [1, 0, 2]})
USERS = pa.table({"user_index": pa.array([0, 1], pa.int32()), "user_id": ["ann", "bob"]})
SEEN = ItemLists.from_pairs(np.array([0, 0, 1]), np.array([2, 0, 1]), num_users=2)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    uri = str(tmp_path / "bundle")
    write_bundle(
        uri,
        scorer=SCORER,
        items=ITEMS,
        users=USERS,
        seen=SEEN,
        metrics={"test": {"ndcg@10": 0.25}},
        config={"name": "x", "ks": (5, 10)},
        model_files={"model.safetensors": b"weights", "assets/text/tokenizer.json": b"{}"},
        identity="abcdef0123456789",
        parents={"run": "r"},
    )
    return uri


def same_scorer(left: Scorer, right: Scorer) -> bool:
    return all(torch.equal(left.tensors()[name], value) for name, value in right.tensors().items())


def test_a_bundle_comes_back_as_it_was_written(uri: str):
    bundle = read_bundle(uri)
    assert same_scorer(bundle.scorer, SCORER)
    assert bundle.items.equals(ITEMS)
    assert bundle.users.equals(USERS)
    assert [bundle.seen.of(user).tolist() for user in range(2)] == [[0, 2], [1]]
    assert (bundle.metrics, bundle.config) == ({"test": {"ndcg@10": 0.25}}, {"name": "x", "ks": [5, 10]})
    assert bundle.version == "abcdef012345"
    assert (bundle.manifest["counts"], bundle.manifest["parents"]) == ({"num_items": 3, "num_users": 2, "dimension": 2}, {"run": "r"})


def test_a_bundle_holds_its_files_and_no_pickle(uri: str):
    names = set(read_bundle(uri).manifest["files"])
    assert names == {
        *("scorer.safetensors", "items.parquet", "users.parquet", "seen.safetensors", "metrics.json", "config.json"),
        *("model/model.safetensors", "model/assets/text/tokenizer.json"),
    }
    assert (Path(uri) / "model" / "assets" / "text" / "tokenizer.json").read_bytes() == b"{}"


@pytest.mark.parametrize("name", ["scorer.safetensors", "items.parquet", "seen.safetensors", "config.json", "model/model.safetensors"])
def test_a_changed_byte_is_refused_by_the_name_of_its_file(uri: str, name: str):
    path = Path(uri) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"file '{name}' in .* has SHA-256"):
        read_bundle(uri)


@pytest.mark.parametrize("name", ["users.parquet", "model/model.safetensors"])
def test_a_missing_file_is_refused_by_its_name(uri: str, name: str):
    (Path(uri) / name).unlink()
    with pytest.raises(InputError, match=rf"file '{name}' is missing from"):
        read_bundle(uri)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path, hand_prepared: str):
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        read_bundle(str(tmp_path / "absent"))
    with pytest.raises(InputError, match="holds kind 'prepared'"):
        read_bundle(hand_prepared)


RUN_SCORER = Scorer(torch.ones(3, 2), torch.arange(10.0).reshape(5, 2), torch.zeros(3), torch.zeros(5), torch.tensor(0.0))


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    """A finished run of `hand_prepared`, not yet evaluated."""
    uri = str(tmp_path / "run")
    with staged_folder(uri) as stage:
        RUN_SCORER.save(stage.path("scorer.safetensors"))
        write_bytes(stage.path("weights.safetensors"), b"weights")
        write_bytes(stage.path("assets", "text", "tokenizer.json"), b"{}")
        stage.commit("run", "0123456789abcdef", parents={}, counts={}, config={"name": "r"})
    return uri


def test_a_run_without_metrics_is_not_bundled(run_uri: str, hand_prepared: str, tmp_path: Path):
    with pytest.raises(InputError, match=r"has no report/metrics\.json; expected an evaluated run; run jobs\.evaluate first"):
        bundle_run(run_uri, "run", PreparedData.open(hand_prepared), str(tmp_path / "bundles"))


def test_an_evaluated_run_is_bundled_once_with_titles_and_everything_users_had(run_uri: str, hand_prepared: str, tmp_path: Path):
    data, root = PreparedData.open(hand_prepared), str(tmp_path / "bundles")
    write_json(f"{run_uri}/report/metrics.json", {"test": {}})
    result = bundle_run(run_uri, "run", data, root)
    bundle: Bundle = read_bundle(result["bundle"])
    assert result["bundle"] == f"{root}/{bundle.version}"
    assert same_scorer(bundle.scorer, RUN_SCORER)
    assert bundle.items.to_pydict() == {
        "item_index": [0, 1, 2, 3, 4],
        "item_id": list("abcde"),
        "title": [f"Title {name}" for name in "abcde"],
        "train_count": [1, 1, 0, 2, 2],
    }
    assert bundle.users.to_pydict() == {"user_index": [0, 1, 2], "user_id": ["ann", "bob", "cid"]}
    assert [bundle.seen.of(user).tolist() for user in range(3)] == [[1, 2, 3, 4], [0, 1, 4], [2, 3]]
    assert {name for name in bundle.manifest["files"] if name.startswith("model/")} == {"model/model.safetensors", "model/assets/text/tokenizer.json"}
    assert bundle.manifest["parents"] == {"run": "0123456789abcdef", "prepared": "feedc0ffee123456"}
    assert result["size_bytes"] == sum(path.stat().st_size for path in Path(result["bundle"]).rglob("*") if path.is_file() and path.name != "manifest.json")
    assert bundle_run(run_uri, "run", data, root) == result

    write_json(f"{run_uri}/report/metrics.json", {"test": {"ndcg@10": 0.5}})
    assert bundle_run(run_uri, "run", data, root)["bundle"] != result["bundle"]


def test_a_damaged_run_is_not_bundled(run_uri: str, hand_prepared: str, tmp_path: Path):
    write_json(f"{run_uri}/report/metrics.json", {})
    (Path(run_uri) / "weights.safetensors").write_bytes(b"weightz")
    with pytest.raises(InputError, match=r"file 'weights\.safetensors' in"):
        bundle_run(run_uri, "run", PreparedData.open(hand_prepared), str(tmp_path / "bundles"))


def test_the_manifest_says_what_it_is(uri: str):
    manifest = json.loads((Path(uri) / "manifest.json").read_text())
    assert (manifest["kind"], manifest["fingerprint"]) == (BUNDLE_KIND, "abcdef0123456789")
    assert {"python", "torch", "pyarrow"} <= manifest["versions"].keys()
