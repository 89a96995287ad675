"""The HTTP interface: what a request may hold, what an answer holds, and the routes over any object that answers them."""

import reprlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medley.schema import InputError
from medley.serving.recommender import MAX_K, ModelDescription, Query, RankedItem, Recommendations, Recommender, UnknownIdError

MAX_BODY_BYTES = 1_000_000
MAX_ECHO_CHARACTERS = 200

Id = Annotated[str, StringConstraints(min_length=1, max_length=512)]
NumResults = Annotated[int, Field(ge=1, le=MAX_K)]
Ids = Annotated[list[Id], Field(max_length=1000)]


class _Strict(BaseModel):
    """Unknown fields and values of another type ("5" for 5) are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class RecommendRequest(_Strict):
    """Recommendations for one user."""

    user_id: Id | None = None
    """who asks; may be absent or unknown"""
    k: NumResults = 10
    """number of items wanted"""
    history: Ids = []
    """items the user has had lately; the only knowledge of a user the model has not met"""
    exclude: Ids = []
    """items never to return"""
    candidates: Annotated[list[Id], Field(max_length=10_000)] | None = None
    """rank only these items; absent: the whole catalogue"""
    include_seen: bool = False
    """also return items the user has already had"""

    def query(self) -> Query:
        """The same request for a Recommender."""
        return Query(self.user_id, self.k, self.history, self.exclude, self.candidates, self.include_seen)


class ScoreRequest(_Strict):
    """Scores of given items for one user."""

    user_id: Id | None = None
    """who asks"""
    item_ids: Annotated[list[Id], Field(min_length=1, max_length=1000)]
    """items to score"""
    history: Ids = []
    """items the user has had lately, for a user the model has not met"""


class SimilarRequest(_Strict):
    """Items like a given one."""

    item_id: Id
    """the item to start from"""
    k: NumResults = 10
    """number of items wanted"""


class ScoreResponse(BaseModel):
    """Scores in the order of the request's item_ids."""

    scores: list[float]
    model_version: str


class SimilarResponse(BaseModel):
    """Items by falling cosine of their vectors with the asked item's; `score` is the cosine."""

    items: list[RankedItem]
    model_version: str


class HealthResponse(BaseModel):
    """A recommender replica has answered."""

    status: str
    model_version: str


class ErrorDetail(BaseModel):
    """What we got, what we expected, what to do next."""

    got: str
    expected: str
    remedy: str


class ErrorResponse(BaseModel):
    """Every refusal has this form."""

    error: ErrorDetail


class Backend(Protocol):
    """Whoever answers the routes: the ingress deployment, or a Recommender in this process (`LocalBackend`)."""

    async def recommend(self, request: RecommendRequest) -> Recommendations: ...
    async def score(self, request: ScoreRequest) -> ScoreResponse: ...
    async def similar(self, request: SimilarRequest) -> SimilarResponse: ...
    async def model(self) -> ModelDescription: ...


class LocalBackend:
    """The routes over a Recommender in this process, without Ray: `uvicorn.run(create_api(LocalBackend(recommender)))`."""

    def __init__(self, recommender: Recommender):
        self.recommender = recommender

    async def recommend(self, request: RecommendRequest) -> Recommendations:
        """Answer POST /v1/recommend."""
        return self.recommender.recommend_many([request.query()])[0]

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Answer POST /v1/score."""
        return answer_score(self.recommender, request)

    async def similar(self, request: SimilarRequest) -> SimilarResponse:
        """Answer POST /v1/similar."""
        return answer_similar(self.recommender, request)

    async def model(self) -> ModelDescription:
        """Answer GET /v1/model."""
        return self.recommender.description


def answer_score(recommender: Recommender, request: ScoreRequest) -> ScoreResponse:
    """Scores with the version that gave them."""
    scores = recommender.score(request.user_id, request.item_ids, request.history)
    return ScoreResponse(scores=scores, model_version=recommender.model_version)


def answer_similar(recommender: Recommender, request: SimilarRequest) -> SimilarResponse:
    """Similar items with the version that gave them."""
    return SimilarResponse(items=recommender.similar(request.item_id, request.k), model_version=recommender.model_version)


def create_api(backend: Backend) -> FastAPI:
    """The FastAPI application whose routes ask `backend`; its OpenAPI page is at /docs."""
    refusals: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in (404, 413, 422, 503)}
    api = FastAPI(title="Medley", summary="Recommendations from a trained bundle", responses=refusals)
    api.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    api.add_exception_handler(InputError, _on_input_error)
    api.add_exception_handler(RequestValidationError, _on_invalid_request)
    api.add_exception_handler(StarletteHTTPException, _on_http_error)

    @api.post("/v1/recommend")
    async def recommend(request: RecommendRequest) -> Recommendations:
        """The best items for a user; `source` says what is known of them."""
        return await backend.recommend(request)

    @api.post("/v1/score")
    async def score(request: ScoreRequest) -> ScoreResponse:
        """Scores of given items for a user."""
        return await backend.score(request)

    @api.post("/v1/similar")
    async def similar(request: SimilarRequest) -> SimilarResponse:
        """Items like a given one."""
        return await backend.similar(request)

    @api.get("/v1/model")
    async def model() -> ModelDescription:
        """What is served and what it was made from."""
        return await backend.model()

    @api.get("/healthz")
    async def healthz() -> HealthResponse:
        """200 when a recommender replica answers; it takes the road of every request."""
        return HealthResponse(status="ok", model_version=(await backend.model()).model_version)

    return api


class BodyLimit:
    """ASGI middleware: reads a request's body and answers 413 once it passes the limit, whatever its Content-Length says."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, has_more = bytearray(), True
        while has_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            has_more = message.get("more_body", False)
            if len(body) > self.max_bytes:
                response = _refusal(413, f"a body of more than {self.max_bytes} bytes", f"at most {self.max_bytes} bytes", "send fewer ids")
                await response(scope, receive, send)
                return
        await self.app(scope, _replay(bytes(body), receive), send)


def _replay(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """A `receive` that hands out the body that was already read, then what the server has."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again


async def _on_input_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InputError)
    return _refusal(404 if isinstance(error, UnknownIdError) else 422, error.got, error.expected, error.remedy)


async def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    got = f"{_place(first['loc'])} = {reprlib.repr(first.get('input'))}" if first["type"] != "missing" else f"{_place(first['loc'])} is missing"
    return _refusal(422, got, str(first["msg"]), "correct the request; /docs lists every field")


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    got = f"{request.method} {request.url.path}: {error.detail}"
    return _refusal(error.status_code, got, "a request described at /docs", "correct the request, or repeat it later", error.headers)


def _place(location: Sequence[Any]) -> str:
    return ".".join(str(part) for part in location)


def _refusal(status: int, got: str, expected: str, remedy: str, headers: Any = None) -> JSONResponse:
    detail = ErrorDetail(got=_echo(got), expected=_echo(expected), remedy=_echo(remedy))
    return JSONResponse({"error": detail.model_dump()}, status_code=status, headers=headers)


def _echo(text: str) -> str:
    """Text that came with a request, shortened and fit for UTF-8 (JSON may carry lone surrogates)."""
    short = text if len(text) <= MAX_ECHO_CHARACTERS else text[:MAX_ECHO_CHARACTERS] + "…"
    return short.encode("utf-8", "backslashreplace").decode()
