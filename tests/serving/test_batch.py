"""Batch scoring with Ray Data: the answers of the recommender, one row per user, written once."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medley.manifest import list_folder, read_manifest, read_parquet
from medley.schema import InputError
from medley.serving import batch
from medley.serving.batch import SCORES_KIND, SCORES_SCHEMA, score_users
from medley.serving.recommender import Recommender


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scores")


@pytest.fixture(scope="module")
def scored(ray_session: None, random_bundle: str, root: Path) -> dict[str, Any]:
    """The top 7 of all 120 users, in blocks of 50."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "USERS_PER_BATCH", 50)
        return score_users(random_bundle, str(root), 7, None, num_processes=2)


def rows_of(uri: str) -> list[dict[str, Any]]:
    tables = [read_parquet(f"{uri}/part/{name}") for name in list_folder(f"{uri}/part")]
    return sorted((row for table in tables for row in table.to_pylist()), key=lambda row: row["user_id"] or "")


def test_every_user_has_one_row_and_it_is_the_recommenders_answer(scored: dict[str, Any], random_bundle: str) -> None:
    rows = rows_of(scored["scores"])
    assert sorted(row["user_id"] for row in rows) == sorted(f"user-{number}" for number in range(120))
    recommender = Recommender.load(random_bundle)
    for row in rows:
        answer = recommender.recommend(row["user_id"], k=7)
        assert row["source"] == answer.source == "personal"
        assert row["item_ids"] == [item.item_id for item in answer.items]
        assert row["scores"] == pytest.approx([item.score for item in answer.items], rel=1e-7)


def test_the_folder_says_what_it_holds(scored: dict[str, Any], random_bundle: str) -> None:
    manifest = read_manifest(scored["scores"], SCORES_KIND)
    assert manifest["parents"] == {"bundle": read_manifest(random_bundle, "bundle")["fingerprint"]}
    assert manifest["counts"] == {"num_users": 120, "k": 7}
    assert len(manifest["files"]) == 3
    assert {name: scored[name] for name in ("num_users", "k")} == {"num_users": 120, "k": 7}
    assert all(pq.read_schema(Path(scored["scores"], name)).equals(SCORES_SCHEMA) for name in manifest["files"])


def test_the_same_scores_are_reused_and_another_k_is_another_folder(scored: dict[str, Any], random_bundle: str, root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(scored["scores"]).rglob("*")}
    again = score_users(random_bundle, str(root), 7, None, num_processes=1)
    assert {**again, "seconds": 0} == {**scored, "seconds": 0}
    assert {path: path.stat().st_mtime_ns for path in Path(scored["scores"]).rglob("*")} == before
    assert len(list_folder(str(root))) == 1
    users = root.parent / "one.parquet"
    pq.write_table(pa.table({"user_id": ["user-3"]}), users)
    assert score_users(random_bundle, str(root), 2, str(users), num_processes=1)["scores"] != scored["scores"]


def test_a_file_names_the_users_and_unknown_ones_get_what_is_popular(ray_session: None, hand_bundle: str, tmp_path: Path) -> None:
    users = tmp_path / "users.parquet"
    pq.write_table(pa.table({"age": [20, 30, 40], "user_id": ["bob", "nobody", "ann"]}), users)
    result = score_users(hand_bundle, str(tmp_path / "scores"), 2, str(users), num_processes=4)
    assert result["num_users"] == 3
    # ann: items b c e f are new; c 1, e 2, b 0, f 0 + 0.5. bob: b is seen; c and e score 1, in their order. Offsets: ann 0.75, bob 0.25.
    assert rows_of(result["scores"]) == [
        {"user_id": "ann", "source": "personal", "item_ids": ["e", "c"], "scores": [2.75, 1.75]},
        {"user_id": "bob", "source": "personal", "item_ids": ["c", "e"], "scores": [1.25, 1.25]},
        {"user_id": "nobody", "source": "popular", "item_ids": ["a", "b"], "scores": [5.0, 4.0]},
    ]


@pytest.mark.parametrize("k", [0, 1001])
def test_a_k_out_of_range_is_refused(hand_bundle: str, tmp_path: Path, k: int) -> None:
    with pytest.raises(InputError, match=f"k is {k}; expected a number of results from 1 to 1000"):
        score_users(hand_bundle, str(tmp_path), k, None, num_processes=1)
    assert list_folder(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("table", "found"),
    [({"user": ["ann"]}, "user: string"), ({"user_id": [1, 2]}, "user_id: int64")],
    ids=["no user_id", "numbers"],
)
def test_a_users_file_without_ids_is_refused(hand_bundle: str, tmp_path: Path, table: dict[str, Any], found: str) -> None:
    path = tmp_path / "users.parquet"
    pq.write_table(pa.table(table), path)
    with pytest.raises(InputError) as refused:
        score_users(hand_bundle, str(tmp_path / "scores"), 3, str(path), num_processes=1)
    message = str(refused.value)
    assert message.startswith(f"'{path}' has columns ")
    assert found in message
    assert message.endswith("expected a column 'user_id' (string); rename or cast it")


def test_a_users_file_without_rows_is_refused(hand_bundle: str, tmp_path: Path) -> None:
    path = tmp_path / "users.parquet"
    pq.write_table(pa.table({"user_id": pa.array([], pa.string())}), path)
    with pytest.raises(InputError, match="has no rows; expected at least one user"):
        score_users(hand_bundle, str(tmp_path / "scores"), 3, str(path), num_processes=1)


def test_rows_without_an_id_are_refused_with_their_number_and_the_first(hand_bundle: str, tmp_path: Path) -> None:
    path = tmp_path / "users.parquet"
    pq.write_table(pa.table({"user_id": ["ann", None, "bob", None]}), path)
    with pytest.raises(InputError, match=r"users\.parquet' has 2 rows without a user_id, the first is row 1 \(counted from 0\); expected an id in every row"):
        score_users(hand_bundle, str(tmp_path / "scores"), 3, str(path), num_processes=1)


def test_no_processes_are_refused(hand_bundle: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 processes; expected at least 1"):
        score_users(hand_bundle, str(tmp_path), 3, None, num_processes=0)


def test_a_folder_that_is_no_bundle_and_a_missing_file_are_refused(hand_bundle: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a finished folder of kind 'bundle'"):
        score_users(str(tmp_path), str(tmp_path), 3, None, num_processes=1)
    with pytest.raises(InputError, match="nowhere.parquet' does not exist"):
        score_users(hand_bundle, str(tmp_path), 3, str(tmp_path / "nowhere.parquet"), num_processes=1)
