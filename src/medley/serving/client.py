"""A small typed client of the HTTP interface that repeats calls which the service could not take."""

import time
from collections.abc import Sequence
from typing import Any, Self, TypeVar

import httpx2
from pydantic import BaseModel, TypeAdapter

from medley.schema import InputError
from medley.serving.api import ErrorResponse, HealthResponse, RecommendRequest, ScoreRequest, ScoreResponse, SimilarRequest, SimilarResponse
from medley.serving.recommender import ModelDescription, Recommendations, UnknownIdError

RETRIED_STATUSES = (408, 429, 503)
FIRST_BACKOFF_SECONDS = 0.1

T = TypeVar("T")


class ServiceError(RuntimeError):
    """The service could not be reached or did not answer as agreed, after all retries. status: HTTP status, None without an answer."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message, status)
        self.message, self.status = message, status

    def __str__(self) -> str:
        return self.message


class MedleyClient:
    """Calls of one service; use as a context manager or call `close`. Safe to share between threads.

    Every call only reads, so connection errors, timeouts and 408, 429, 503 are repeated up to `retries` times, after 0.1, 0.2, 0.4 … s.
    A request that the service refuses (4xx) raises the InputError it describes, UnknownIdError for an unknown user or item.
    timeout_seconds: limit of each try.
    """

    def __init__(self, base_url: str, timeout_seconds: float = 5, retries: int = 2):
        self._retries = retries
        self._http = httpx2.Client(base_url=base_url, timeout=timeout_seconds)

    def recommend(
        self,
        user_id: str | None = None,
        k: int = 10,
        *,
        history: Sequence[str] = (),
        exclude: Sequence[str] = (),
        candidates: Sequence[str] | None = None,
        include_seen: bool = False,
    ) -> Recommendations:
        """As `Recommender.recommend`."""
        request = RecommendRequest.model_construct(
            user_id=user_id,
            k=k,
            history=list(history),
            exclude=list(exclude),
            candidates=None if candidates is None else list(candidates),
            include_seen=include_seen,
        )
        return self._call("POST", "/v1/recommend", Recommendations, request)

    def score(self, user_id: str | None, item_ids: Sequence[str], history: Sequence[str] = ()) -> ScoreResponse:
        """As `Recommender.score`, with the version that gave the scores."""
        request = ScoreRequest.model_construct(user_id=user_id, item_ids=list(item_ids), history=list(history))
        return self._call("POST", "/v1/score", ScoreResponse, request)

    def similar(self, item_id: str, k: int = 10) -> SimilarResponse:
        """As `Recommender.similar`, with the version that found the items."""
        return self._call("POST", "/v1/similar", SimilarResponse, SimilarRequest.model_construct(item_id=item_id, k=k))

    def model(self) -> ModelDescription:
        """What is served."""
        return self._call("GET", "/v1/model", ModelDescription)

    def healthz(self) -> HealthResponse:
        """Whether a recommender answers."""
        return self._call("GET", "/healthz", HealthResponse)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _call(self, method: str, path: str, answer: type[T], request: BaseModel | None = None) -> T:
        body = None if request is None else request.model_dump()
        for attempt in range(self._retries + 1):
            is_last = attempt == self._retries
            try:
                response = self._http.request(method, path, json=body)
            except httpx2.TransportError as error:
                if is_last:
                    raise ServiceError(f"{method} {path} got no answer in {attempt + 1} tries ({type(error).__name__}: {error})") from error
            else:
                if response.status_code not in RETRIED_STATUSES or is_last:
                    return _read(response, answer)
            time.sleep(FIRST_BACKOFF_SECONDS * 2**attempt)
        raise AssertionError("the last try returns or raises")


def _read(response: httpx2.Response, answer: type[T]) -> T:
    """The answer in its type, or the error it carries."""
    status = response.status_code
    if status == 200:
        return TypeAdapter(answer).validate_json(response.content)
    # A 404 of Serve's own proxy (nothing runs under this path) is plain text.
    if status in (404, 413, 422) and response.headers.get("content-type") == "application/json":
        error = ErrorResponse.model_validate_json(response.content).error
        raise (UnknownIdError if status == 404 else InputError)(error.got, error.expected, error.remedy)
    raise ServiceError(f"{response.request.method} {response.request.url} answered {status}: {response.text[:500]}", status)
