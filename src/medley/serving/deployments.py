"""The Ray Serve application: an HTTP ingress that validates, and recommender replicas that answer in batches, both autoscaled."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import torch
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.handle import DeploymentHandle

from medley.bundle import BUNDLE_KIND
from medley.manifest import absolute_uri, read_manifest, verify_files
from medley.schema import InputError
from medley.serving.api import RecommendRequest, ScoreRequest, ScoreResponse, SimilarRequest, SimilarResponse, answer_score, answer_similar, create_api
from medley.serving.recommender import ModelDescription, Query, Recommendations, Recommender

NUM_BATCHES_IN_REPLICA = 2
"""One batch being computed while the next one fills."""
METRICS_INTERVAL_SECONDS = 1.0
GRACEFUL_SHUTDOWN_SECONDS = 30
RETRY_AFTER_SECONDS = 1
NUM_TRIES = 2
"""A replica that dies loses the requests in its hands; every call only reads, so one more try is safe."""

T = TypeVar("T")


class ServeArgs(BaseModel):
    """What `serve run serve.app:app key=value …` and the `args` of a Serve YAML file may set. Limits hold for both deployments."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    bundle: str
    """folder or URI of a bundle; a relative path is resolved where the application is built (use absolute ones with `serve deploy`)"""
    min_replicas: int = Field(default=1, ge=1)
    """replicas that always run; not 0, because the first request would wait for the bundle to load"""
    max_replicas: int = Field(default=2, ge=1)
    """replicas under the highest load"""
    target_ongoing_requests: float = Field(default=16, gt=0)
    """requests in work or waiting per replica that autoscaling aims at; half a batch leaves room for bursts"""
    upscale_delay_seconds: float = Field(default=5, gt=0)
    """seconds that load must stand above the target before replicas are added; also the window over which load is averaged"""
    downscale_delay_seconds: float = Field(default=120, ge=0)
    """seconds that load must stand below the target before replicas are removed"""
    max_queued_requests: int = Field(default=256, ge=1)
    """requests that may wait at each caller of a deployment; further ones get a 503 with Retry-After"""
    max_batch_size: int = Field(default=32, ge=1)
    """recommend requests answered in one product"""
    batch_wait_seconds: float = Field(default=0.002, ge=0)
    """seconds that a request waits for others to share its batch; it is added to the latency of a lonely request"""
    num_threads: int = Field(default=1, ge=1)
    """torch threads of a recommender replica, and the CPUs that Ray reserves for it"""
    unseen_weight: float | None = Field(default=None, ge=0)
    """fold-in: weight of the items that are not in the history; null: the run's evaluate.fold_in_unseen_weight"""
    regularization: float | None = Field(default=None, gt=0)
    """fold-in: ridge term; null: the run's evaluate.fold_in_regularization"""

    @field_validator("bundle")
    @classmethod
    def _absolute(cls, bundle: str) -> str:
        return absolute_uri(bundle)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas is {self.min_replicas}; expected at most max_replicas ({self.max_replicas}); raise max_replicas")
        most_ongoing = NUM_BATCHES_IN_REPLICA * self.max_batch_size
        if self.target_ongoing_requests > most_ongoing:
            raise ValueError(
                f"target_ongoing_requests is {self.target_ongoing_requests:g}; expected at most {most_ongoing}, what a replica takes at once "
                f"({NUM_BATCHES_IN_REPLICA} x max_batch_size); lower it or raise max_batch_size"
            )
        return self


class RecommenderReplica:
    """One bundle in memory. All torch work runs in one thread, so that the event loop stays free to collect the next batch."""

    def __init__(self, args: ServeArgs):
        torch.set_num_threads(args.num_threads)
        self._recommender = Recommender.load(args.bundle, unseen_weight=args.unseen_weight, regularization=args.regularization)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recommender")
        batched: Any = self.recommend
        batched.set_max_batch_size(args.max_batch_size)
        batched.set_batch_wait_timeout_s(args.batch_wait_seconds)

    @serve.batch
    async def recommend(self, queries: list[Query]) -> list[Recommendations]:
        """Called with one Query, answered in batches."""
        return await self._in_thread(self._recommender.recommend_many, queries)

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Scores of items; unknown ids are an UnknownIdError."""
        return await self._in_thread(answer_score, self._recommender, request)

    async def similar(self, request: SimilarRequest) -> SimilarResponse:
        """Items like a given one; an unknown one is an UnknownIdError."""
        return await self._in_thread(answer_similar, self._recommender, request)

    async def model(self) -> ModelDescription:
        """What this replica serves."""
        return self._recommender.description

    async def check_health(self) -> None:
        """Answer a real query; Serve replaces the replica when this raises or hangs."""
        await self._in_thread(self._recommender.recommend, None, 1)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


@serve.ingress()
class Ingress:
    """The HTTP side: checks requests, asks a recommender replica, and asks once more when a replica dies over a request."""

    def __init__(self, recommender: DeploymentHandle):
        self._recommender = recommender

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The routes, built in the replica (Serve calls this after the constructor)."""
        return create_api(self)

    async def recommend(self, request: RecommendRequest) -> Recommendations:
        """Answer POST /v1/recommend."""
        return await self._ask("recommend", request.query())

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Answer POST /v1/score."""
        return await self._ask("score", request)

    async def similar(self, request: SimilarRequest) -> SimilarResponse:
        """Answer POST /v1/similar."""
        return await self._ask("similar", request)

    async def model(self) -> ModelDescription:
        """Answer GET /v1/model."""
        return await self._ask("model")

    async def _ask(self, method: str, *args: Any) -> Any:
        for _ in range(NUM_TRIES):
            try:
                return await self._recommender.options(method_name=method).remote(*args)
            except RayActorError:
                continue
            except RayTaskError as error:
                if isinstance(error.cause, InputError):
                    raise error.cause from None
                raise
        raise HTTPException(503, "recommender replicas are being replaced", headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


def build_app(args: ServeArgs) -> serve.Application:
    """The application of one bundle. Reads the bundle's manifest and hashes its files first: a wrong path or a changed byte is an InputError here."""
    verify_files(args.bundle, read_manifest(args.bundle, BUNDLE_KIND))
    shared: dict[str, Any] = {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=args.min_replicas,
            max_replicas=args.max_replicas,
            target_ongoing_requests=args.target_ongoing_requests,
            upscale_delay_s=args.upscale_delay_seconds,
            downscale_delay_s=args.downscale_delay_seconds,
            # Serve's defaults (load averaged over 30 s, reported every 10 s) would notice a burst only after it.
            look_back_period_s=max(args.upscale_delay_seconds, 2 * METRICS_INTERVAL_SECONDS),
            metrics_interval_s=METRICS_INTERVAL_SECONDS,
        ),
        "max_queued_requests": args.max_queued_requests,
        "backpressure_config": BackpressureConfig(retry_after_s=RETRY_AFTER_SECONDS),
        "graceful_shutdown_timeout_s": GRACEFUL_SHUTDOWN_SECONDS,
        "graceful_shutdown_wait_loop_s": 1,
        "health_check_period_s": 5,
        "health_check_timeout_s": 10,
    }
    max_ongoing_requests = NUM_BATCHES_IN_REPLICA * args.max_batch_size
    recommender = serve.deployment(name="Recommender", ray_actor_options={"num_cpus": args.num_threads}, max_ongoing_requests=max_ongoing_requests, **shared)(
        RecommenderReplica
    )
    # An ingress replica mostly waits, and must be able to fill the batches of several recommenders.
    ingress = serve.deployment(name="Ingress", ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=4 * max_ongoing_requests, **shared)(Ingress)
    return ingress.bind(recommender.bind(args))


@contextmanager
def serve_locally(args: ServeArgs) -> Iterator[str]:
    """Serve a bundle on a free loopback port for the length of a block; gives the base URL. Needs a Ray session without Serve."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 30})
    try:
        serve.run(build_app(args))
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
