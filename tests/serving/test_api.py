"""The HTTP interface without Ray: answers, refusals and their one schema, and the client against a server that fails first."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from fastapi.testclient import TestClient

from medley.schema import InputError
from medley.serving.api import MAX_BODY_BYTES, LocalBackend, create_api
from medley.serving.client import MedleyClient, ServiceError
from medley.serving.recommender import Recommender, UnknownIdError


@pytest.fixture(scope="module")
def api(hand_bundle: str) -> Iterator[TestClient]:
    with TestClient(create_api(LocalBackend(Recommender.load(hand_bundle))), raise_server_exceptions=False) as client:
        yield client


def test_recommend_answers_items_source_and_version(api: TestClient):
    response = api.post("/v1/recommend", json={"user_id": "ann", "k": 2, "history": ["?"]})
    assert response.status_code == 200
    assert response.json() == {
        "items": [{"item_id": "e", "title": "Title e", "score": 2.75}, {"item_id": "c", "title": "Title c", "score": 1.75}],
        "source": "personal",
        "unknown_items": ["?"],
        "model_version": "hand00000000",
    }


def test_an_empty_request_gets_popular_items(api: TestClient):
    answer = api.post("/v1/recommend", json={}).json()
    assert (answer["source"], [item["item_id"] for item in answer["items"]]) == ("popular", list("abcdfe"))


def test_score_similar_model_and_health(api: TestClient):
    assert api.post("/v1/score", json={"user_id": "ann", "item_ids": ["b", "e"]}).json() == {"scores": [0.75, 2.75], "model_version": "hand00000000"}
    assert [item["item_id"] for item in api.post("/v1/similar", json={"item_id": "a", "k": 2}).json()["items"]] == ["e", "c"]
    model = api.get("/v1/model").json()
    assert (model["num_items"], model["dimension"], model["metrics"], model["model_version"]) == (6, 2, {"ndcg@10": 0.5}, "hand00000000")
    assert api.get("/healthz").json() == {"status": "ok", "model_version": "hand00000000"}


def test_the_openapi_page_documents_every_field(api: TestClient):
    assert api.get("/docs").status_code == 200
    schema = api.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/v1/recommend", "/v1/score", "/v1/similar", "/v1/model", "/healthz"}
    fields = schema["components"]["schemas"]["RecommendRequest"]["properties"]
    assert all("description" in field for field in fields.values())


@pytest.mark.parametrize(
    ("path", "body", "status", "got"),
    [
        ("recommend", {"k": 0}, 422, "body.k = 0"),
        ("recommend", {"k": 1001}, 422, "body.k = 1001"),
        ("recommend", {"k": 10**30}, 422, "body.k"),
        ("recommend", {"k": 1.5}, 422, "body.k = 1.5"),
        ("recommend", {"k": "5"}, 422, "body.k = '5'"),
        ("recommend", {"k": None}, 422, "body.k = None"),
        ("recommend", {"k": True}, 422, "body.k = True"),
        ("recommend", {"user": "ann"}, 422, "body.user = 'ann'"),
        ("recommend", {"user_id": "x" * 513}, 422, "body.user_id"),
        ("recommend", {"user_id": ""}, 422, "body.user_id = ''"),
        ("recommend", {"history": ["a"] * 1001}, 422, "body.history"),
        ("recommend", {"candidates": ["a"] * 10_001}, 422, "body.candidates"),
        ("recommend", {"history": ["a", 7]}, 422, "body.history.1 = 7"),
        ("recommend", {"include_seen": 1}, 422, "body.include_seen = 1"),
        ("recommend", ["ann"], 422, "body = ['ann']"),
        ("score", {"user_id": "ann"}, 422, "body.item_ids is missing"),
        ("score", {"user_id": "ann", "item_ids": []}, 422, "body.item_ids"),
        ("score", {"user_id": "ann", "item_ids": ["zzz"]}, 404, "item 'zzz' is not in bundle"),
        ("score", {"user_id": "zoe", "item_ids": ["a"]}, 404, "user 'zoe' is not in bundle"),
        ("similar", {"item_id": "zzz"}, 404, "item 'zzz' is not in bundle"),
        ("unheard_of", {}, 404, "POST /v1/unheard_of: Not Found"),
    ],
)
def test_bad_requests_are_refused_with_the_three_parts(api: TestClient, path: str, body: object, status: int, got: str):
    response = api.post(f"/v1/{path}", json=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["got"].startswith(got)
    assert error["expected"]
    assert error["remedy"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b'{"k": NaN}',
        b'{"k": Infinity}',
        b'{"user_id": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"k":' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"k":' + b"[" * 900 + b"]" * 900 + b"}",
        b"[" * 10_000 + b"]" * 10_000,
        b'{"k":' + b"9" * 5000 + b"}",
    ],
)
def test_poisoned_bodies_are_refused_never_a_500(api: TestClient, content: bytes):
    response = api.post("/v1/recommend", content=content, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert set(response.json()["error"]) == {"got", "expected", "remedy"}


def test_strange_but_valid_ids_are_only_unknown(api: TestClient):
    strange = ["../../etc/passwd", "a\x00b", "'; DROP TABLE items;--", "🦊" * 100]
    answer = api.post("/v1/recommend", json={"user_id": strange[0], "history": strange}).json()
    assert (answer["source"], answer["unknown_items"]) == ("popular", strange)


def test_the_largest_allowed_request_is_answered(api: TestClient):
    body = {"user_id": "ann", "k": 1000, "candidates": [f"item-{index}" for index in range(10_000)]}
    assert len(json.dumps(body)) < MAX_BODY_BYTES
    assert api.post("/v1/recommend", json=body).json()["items"] == []


def test_a_body_over_the_limit_is_refused_even_when_it_comes_in_pieces(api: TestClient):
    headers = {"content-type": "application/json"}
    pieces = (b" " * 100_000 for _ in range(11))
    for content in (b" " * (MAX_BODY_BYTES + 1), pieces):
        response = api.post("/v1/recommend", content=content, headers=headers)
        assert response.status_code == 413
        assert response.json()["error"]["got"] == "a body of more than 1000000 bytes"


def test_a_wrong_method_is_refused_in_the_same_form(api: TestClient):
    response = api.get("/v1/recommend")
    assert (response.status_code, response.json()["error"]["got"]) == (405, "GET /v1/recommend: Method Not Allowed")


@pytest.fixture
def scripted_server() -> Iterator[tuple[str, list[tuple[int, dict]], list[str]]]:
    """An HTTP server that gives the listed answers in turn and notes what it was asked."""
    answers: list[tuple[int, dict]] = []
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status, body = answers.pop(0)
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", answers, asked
    server.shutdown()
    thread.join()
    server.server_close()


HEALTHY = {"status": "ok", "model_version": "v"}


@pytest.mark.parametrize("status", [408, 429, 503])
def test_the_client_repeats_calls_that_the_service_could_not_take(scripted_server, status: int):
    url, answers, asked = scripted_server
    answers += [(status, {}), (status, {}), (200, HEALTHY)]
    with MedleyClient(url) as client:
        assert client.healthz().model_version == "v"
    assert asked == ["/healthz"] * 3


def test_the_client_gives_up_after_its_retries(scripted_server):
    url, answers, _ = scripted_server
    answers += [(503, {})] * 2
    with MedleyClient(url, retries=1) as client, pytest.raises(ServiceError, match="answered 503") as caught:
        client.healthz()
    assert caught.value.status == 503


def test_the_client_raises_refusals_at_once_as_what_they_say(scripted_server):
    url, answers, asked = scripted_server
    error = {"error": {"got": "item 'x' is not here", "expected": "an item", "remedy": "check"}}
    answers += [(404, error), (422, error), (500, {})]
    with MedleyClient(url) as client:
        with pytest.raises(UnknownIdError, match="item 'x' is not here"):
            client.similar("x")
        with pytest.raises(InputError, match="an item"):
            client.recommend("ann", k=0)
        with pytest.raises(ServiceError, match="answered 500"):
            client.model()
    assert len(asked) == 3


def test_the_client_says_when_nobody_answers():
    with MedleyClient("http://127.0.0.1:9", retries=1) as client, pytest.raises(ServiceError, match="got no answer in 2 tries"):
        client.healthz()
