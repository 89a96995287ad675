"""A local Ray and one tiny data set, made once and shared by every test that needs them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.storage_faults import FaultProxy

ROOT = Path(__file__).resolve().parents[1]
TINY_MEDIA = {"image_max_side_pixels": 16, "audio_sample_rate_hz": 8000}


def pytest_configure() -> None:
    """Ray reads its authentication mode when it is imported, which the first test module may do; its processes inherit the tests' S3 credentials."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ |= {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests"}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tensors this small lose more to threads that wait for a busy core than they gain."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray with 8 logical CPUs, whose processes find the library and the verb folders of this checkout."""
    from medley.cluster.session import ray_session as session

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # the session puts src before it
        with session("local", num_cpus=8, object_store_bytes=500_000_000):
            yield


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """HOST:PORT of an S3 server on this machine; the test is skipped where its environment is missing."""
    from tests.storage_faults import s3_server

    with s3_server() as address:
        yield address


@pytest.fixture
def s3_root(s3_endpoint: str, request: pytest.FixtureRequest) -> str:
    """URI of an empty folder of this test alone on that server."""
    from tests.storage_faults import storage_uri

    return storage_uri(s3_endpoint, request.node.name.partition("[")[0])


@pytest.fixture
def s3_proxy(s3_endpoint: str) -> "Iterator[FaultProxy]":
    """A proxy before that server, which spoils what the test asks it to."""
    from tests.storage_faults import fault_proxy

    with fault_proxy(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def tiny_tables(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of synthetic tables: 120 items (text, 16-pixel pictures, clips of 0.25 s, some missing) and 60 users."""
    from medley.data.convert import convert
    from medley.data.convert.synthetic import SyntheticConfig

    config = SyntheticConfig(num_items=120, num_users=60, interactions_per_user=12, image_side_pixels=16, clip_seconds=0.25)
    return str(convert(config, str(tmp_path_factory.mktemp("tiny") / "tables"))["tables"])


@pytest.fixture(scope="session")
def tiny_prepared(ray_session: None, tiny_tables: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of the prepared set of `tiny_tables`, split by time; opened with PreparedData.open."""
    from medley.data.prepare import DataConfig, prepare
    from medley.media import MediaConfig

    return str(prepare(tiny_tables, str(tmp_path_factory.mktemp("prepared")), DataConfig(media=MediaConfig(**TINY_MEDIA)), seed=0)["prepared"])


@pytest.fixture(scope="session")
def hand_prepared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a prepared set small enough to know by heart: 3 users, 5 items, 6 train rows; written without Ray.

    Train rows (user, item): 0 (0, 1), 1 (1, 0), 2 (0, 3), 3 (2, 3), 4 (0, 4), 5 (1, 4), one a microsecond. Item 2 is cold. Row 4 weighs 2 and has no value.
    """
    import pyarrow as pa

    from medley.data.prepare import PREPARED_KIND
    from medley.manifest import staged_folder, write_parquet
    from medley.schema import PREPARED_INTERACTIONS_SCHEMA

    def rows(*pairs: tuple[int, int], start: int = 0) -> list[dict[str, object]]:
        facts = {"value": 1.5, "weight": 1.0, "is_target": True}
        return [{"user_index": user, "item_index": item, "timestamp": start + place, **facts} for place, (user, item) in enumerate(pairs)]

    train = rows((0, 1), (1, 0), (0, 3), (2, 3), (0, 4), (1, 4))
    train[4] |= {"weight": 2.0, "value": None}
    parts = {"train": train, "valid": rows((0, 2), (1, 1), (1, 0), start=10), "test": rows((2, 2), start=20)}
    items = {"item_index": pa.array(range(5), pa.int32()), "item_id": list("abcde"), "title": [f"Title {name}" for name in "abcde"]}
    users = {"user_index": pa.array(range(3), pa.int32()), "user_id": ["ann", "bob", "cid"], "country": ["SE", None, "DE"]}
    uri = str(tmp_path_factory.mktemp("hand") / "prepared")
    with staged_folder(uri) as stage:
        for name, part in parts.items():
            write_parquet(stage.path(name, "part-00000.parquet"), pa.Table.from_pylist(part, PREPARED_INTERACTIONS_SCHEMA))
        write_parquet(stage.path("item_facts.parquet"), pa.table({**items, "train_count": pa.array([1, 1, 0, 2, 2], pa.int64())}))
        write_parquet(stage.path("users.parquet"), pa.table(users))
        counts = {"num_items": 5, "num_users": 3, "columns": ["title"]}
        stage.commit(PREPARED_KIND, "feedc0ffee123456", parents={}, counts=counts, config={})
    return uri
