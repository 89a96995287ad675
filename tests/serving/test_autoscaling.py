"""Replicas follow the load up and down again, and no request is lost on the way (takes about 45 s)."""

import threading
import time
from collections.abc import Callable

import httpx2
import pytest

from medley.serving.deployments import ServeArgs, build_app

NUM_BUSY_CALLERS = 12


def wait_until(is_reached: Callable[[], bool], timeout_seconds: float) -> float:
    """Seconds until the condition held; fails after the timeout."""
    start = time.monotonic()
    while not is_reached():
        assert time.monotonic() - start < timeout_seconds, f"not reached within {timeout_seconds} s"
        time.sleep(0.2)
    return time.monotonic() - start


def num_replicas() -> int:
    """Recommender replicas that can take requests."""
    from ray import serve

    return serve.status().applications["autoscaling-test"].deployments["Recommender"].replica_states.get("RUNNING", 0)


class Load:
    """Callers that ask again and again without retries; `statuses` holds what each request got."""

    def __init__(self, url: str, num_callers: int, pause_seconds: float):
        self.statuses: list[int] = []
        self._stop = threading.Event()
        self._url, self._pause_seconds = url, pause_seconds
        self._threads = [threading.Thread(target=self._call) for _ in range(num_callers)]

    def _call(self) -> None:
        with httpx2.Client(timeout=10) as http:
            while not self._stop.is_set():
                self.statuses.append(http.post(self._url, json={"user_id": "user-1", "k": 10}).status_code)
                time.sleep(self._pause_seconds)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.long
def test_replicas_go_from_one_to_two_and_back_without_a_failed_request(serve_url: str, random_bundle: str):
    from ray import serve

    # Each request stays 50 ms in a replica (it waits for a batch of 32 that 12 callers never fill): 12 in work against a target of 2.
    args = ServeArgs(
        bundle=random_bundle, max_replicas=2, target_ongoing_requests=2, upscale_delay_seconds=2, downscale_delay_seconds=3, batch_wait_seconds=0.05
    )
    serve.run(build_app(args), name="autoscaling-test", route_prefix="/autoscaling")
    url = f"{serve_url}/autoscaling/v1/recommend"
    assert num_replicas() == 1

    with Load(url, NUM_BUSY_CALLERS, pause_seconds=0) as busy:
        seconds_up = wait_until(lambda: num_replicas() == 2, timeout_seconds=60)
        num_before_two = len(busy.statuses)
        time.sleep(3)
    with Load(url, 1, pause_seconds=0.1) as quiet:
        seconds_down = wait_until(lambda: num_replicas() == 1, timeout_seconds=60)
        time.sleep(1)
    serve.delete("autoscaling-test")

    print(f"1 → 2 in {seconds_up:.1f} s, 2 → 1 in {seconds_down:.1f} s, {len(busy.statuses)} + {len(quiet.statuses)} requests")
    assert num_before_two >= 100
    assert len(busy.statuses) > num_before_two
    assert set(busy.statuses) == set(quiet.statuses) == {200}
