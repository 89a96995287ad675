"""The Serve application: its arguments, its shipped configurations, and answers over HTTP that equal those in Python."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from medley.schema import InputError
from medley.serving.client import MedleyClient
from medley.serving.deployments import ServeArgs, build_app
from medley.serving.recommender import Recommender, UnknownIdError

SERVE_FOLDER = Path(__file__).resolve().parents[2] / "serve"


@pytest.mark.parametrize("name", ["local.yaml", "production.yaml"])
def test_shipped_configurations_are_valid(name: str):
    from ray.serve.schema import ServeDeploySchema

    text = (SERVE_FOLDER / name).read_text()
    config = ServeDeploySchema.model_validate(YAML(typ="safe").load(text))
    application = config.applications[0]
    assert text.startswith("# serve ")
    assert (application.import_path, config.http_options.host) == ("serve.app:app", "127.0.0.1")
    assert config.http_options.request_timeout_s is not None
    args = ServeArgs.model_validate(application.args)
    assert args.min_replicas >= 1
    assert {deployment.name for deployment in application.deployments} <= {"Ingress", "Recommender"}


def test_the_shipped_placeholder_is_refused_by_its_path():
    application = YAML(typ="safe").load((SERVE_FOLDER / "local.yaml").read_text())["applications"][0]
    with pytest.raises(InputError, match=r"'/path/to/out/demo/bundles/demo/VERSION' has no manifest\.json; expected a finished folder of kind 'bundle'"):
        build_app(ServeArgs.model_validate(application["args"]))


def test_arguments_of_the_command_line_are_strings_and_relative_bundles_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    args = ServeArgs.model_validate({"bundle": "b/1", "max_replicas": "3", "batch_wait_seconds": "0.01"})
    assert (args.bundle, args.max_replicas, args.batch_wait_seconds) == (str(tmp_path / "b/1"), 3, 0.01)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_replica": 3}, "Extra inputs are not permitted"),
        ({"min_replicas": 3, "max_replicas": 2}, r"min_replicas is 3; expected at most max_replicas \(2\)"),
        ({"target_ongoing_requests": 100, "max_batch_size": 8}, "target_ongoing_requests is 100; expected at most 16"),
        ({"min_replicas": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        ServeArgs.model_validate({"bundle": "b", **wrong})


def test_building_fails_at_once_on_a_wrong_path_or_a_changed_byte(hand_bundle: str, tmp_path: Path):
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        build_app(ServeArgs(bundle=str(tmp_path)))
    copy = tmp_path / "copy"
    shutil.copytree(hand_bundle, copy)
    (copy / "items.parquet").write_bytes((copy / "items.parquet").read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"file 'items\.parquet'"):
        build_app(ServeArgs(bundle=str(copy)))


@pytest.fixture(scope="module")
def app_url(serve_url: str, random_bundle: str):
    from ray import serve

    from serve.app import app

    # Requests wait 0.1 s in a replica for a batch to fill, so a replica that is killed under load always has some in its hands.
    serve.run(app(ServeArgs(bundle=random_bundle, min_replicas=2, max_replicas=2, batch_wait_seconds=0.1)), name="app-test", route_prefix="/app")
    yield f"{serve_url}/app"
    serve.delete("app-test")


def test_answers_over_http_equal_those_in_python_for_100_users(app_url: str, random_bundle: str):
    recommender = Recommender.load(random_bundle)
    users = [f"user-{index}" for index in range(100)]
    with MedleyClient(app_url) as client, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda user: client.recommend(user, k=20), users))
        folded = list(threads.map(lambda index: client.recommend(history=[f"item-{index}", "nothing"], k=20), range(30)))
        assert answers == [recommender.recommend(user, k=20) for user in users]
        assert folded == [recommender.recommend(history=[f"item-{index}", "nothing"], k=20) for index in range(30)]
        assert client.recommend(k=5) == recommender.recommend(k=5)
        assert client.score("user-3", ["item-1", "item-9"]).scores == recommender.score("user-3", ["item-1", "item-9"])
        assert client.similar("item-5", k=7).items == recommender.similar("item-5", k=7)
        assert client.model() == recommender.description
        assert client.healthz().model_version == recommender.model_version == answers[0].model_version


def test_refusals_come_through_the_whole_stack(app_url: str):
    with MedleyClient(app_url) as client:
        with pytest.raises(UnknownIdError, match="item 'nothing' is not in bundle"):
            client.similar("nothing")
        with pytest.raises(UnknownIdError, match="user 'nobody'"):
            client.score("nobody", ["item-1"])
        with pytest.raises(InputError, match=r"body\.k = 0"):
            client.recommend("user-1", k=0)
    assert httpx2.post(f"{app_url}/v1/recommend", content=b" " * 1_000_001).status_code == 413
    assert httpx2.get(f"{app_url}/docs").status_code == 200


def test_a_killed_recommender_replica_costs_no_request(app_url: str):
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    victim = next(actor for actor in named if "app-test#Recommender#" in actor["name"])

    def ask(client: httpx2.Client) -> list[int]:
        return [client.post(f"{app_url}/v1/recommend", json={"user_id": "user-1"}).status_code for _ in range(25)]

    with ThreadPoolExecutor(8) as threads, httpx2.Client(timeout=10) as http:
        running = [threads.submit(ask, http) for _ in range(8)]
        time.sleep(0.3)
        assert not any(future.done() for future in running)
        ray.kill(ray.get_actor(victim["name"], namespace=victim["namespace"]))
        statuses = [status for future in running for status in future.result()]
    assert statuses == [200] * 200


def test_requests_beyond_the_queue_get_a_503_with_retry_after_and_none_fails_otherwise(serve_url: str, random_bundle: str):
    from ray import serve

    args = ServeArgs(bundle=random_bundle, max_replicas=1, max_queued_requests=1, max_batch_size=1, target_ongoing_requests=1, batch_wait_seconds=0)
    serve.run(build_app(args), name="queue-test", route_prefix="/queue")
    with ThreadPoolExecutor(48) as threads, httpx2.Client(limits=httpx2.Limits(max_connections=48)) as http:
        responses = list(threads.map(lambda _: http.post(f"{serve_url}/queue/v1/recommend", json={"user_id": "user-1"}), range(480)))
    serve.delete("queue-test")
    refused = [response for response in responses if response.status_code != 200]
    assert {response.status_code for response in responses} == {200, 503}
    assert all(response.headers["retry-after"] == "1" for response in refused)
