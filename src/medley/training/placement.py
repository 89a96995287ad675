"""How many workers an attempt starts with: what `train.workers` and the micro-batches allow, and what the cluster has free.

Ray Train's own elastic range is not used: it takes any number of workers between two, and ours must divide the micro-batches of a step.
"""

import logging
import time
from collections.abc import Mapping

from medley.schema import InputError
from medley.training.config import GradientTrainConfig

logger = logging.getLogger(__name__)

WAIT_SECONDS = 60.0
"""for the fewest workers allowed to find room beside other jobs"""
SETTLE_SECONDS = 10.0
"""for the most workers allowed, before fewer are taken: what a failed attempt held comes back within seconds"""


def check_workers(config: GradientTrainConfig, *, is_fixed: bool = False) -> None:
    """Refuse numbers of workers that cannot divide the micro-batches, and more than all machines together have room for. is_fixed: the loss pools the
    workers' items, so that there can be but one number."""
    if is_fixed and config.min_workers != config.max_workers:
        raise InputError(
            f"train.workers={[config.min_workers, config.max_workers]} with loss.across_ranks",
            "one number of workers, which decides the pool of negatives",
            "set train.workers to one number, or loss.across_ranks=false",
        )
    if not config.world_sizes:
        asked = config.min_workers if config.min_workers == config.max_workers else [config.min_workers, config.max_workers]
        raise InputError(
            f"train.workers={asked} and train.num_micro_batches={config.num_micro_batches}",
            "a number of micro-batches that the workers divide evenly",
            "change one of them (num_micro_batches changes the result, workers does not)",
        )
    check_room(config.world_sizes[0], config.cpus_per_worker, use_gpu=config.use_gpu)


def check_room(num_workers: int, cpus_per_worker: float, *, use_gpu: bool) -> None:
    """Refuse more workers than all machines together have room for, were they empty."""
    import ray

    total, places = ray.cluster_resources(), room_in_total(cpus_per_worker, use_gpu=use_gpu)
    asked = {"CPU": num_workers * cpus_per_worker, "GPU": num_workers if use_gpu else 0}
    for name, amount in asked.items():
        if amount > total.get(name, 0):
            raise InputError(
                f"train asks for {amount:g} {name} and the cluster has {total.get(name, 0):g}",
                "no more than there is",
                "lower train.workers or train.cpus_per_worker, or add nodes",
            )
    if places < num_workers:
        raise InputError(
            f"train asks for {num_workers} workers of {_describe(cpus_per_worker, use_gpu)}, and the machines of the cluster have room for {places}",
            "one machine with all of a worker's resources for each of them",
            "lower train.workers or train.cpus_per_worker, or add nodes",
        )


def choose_num_workers(config: GradientTrainConfig, wait_seconds: float = WAIT_SECONDS, settle_seconds: float = SETTLE_SECONDS) -> int:
    """The most workers allowed that find room now; waits shortly for more, and up to `wait_seconds` for the fewest allowed.

    An InputError says what is missing when they don't find it in that time.
    """
    started, is_told = time.monotonic(), False
    while True:
        check_workers(config)
        waited = time.monotonic() - started
        room = room_now(config.cpus_per_worker, use_gpu=config.use_gpu)
        possible = room_in_total(config.cpus_per_worker, use_gpu=config.use_gpu)
        fitting = [size for size in config.world_sizes if size <= room]
        most = max(size for size in config.world_sizes if size <= possible)
        if fitting and (fitting[-1] == most or waited >= settle_seconds):
            return fitting[-1]
        if not fitting and waited >= wait_seconds:
            raise InputError(
                f"train.workers asks for {config.world_sizes[0]} workers of {_describe(config.cpus_per_worker, config.use_gpu)}; for {wait_seconds:.0f} s "
                f"the cluster has had room for {room} (free: {_free_words()})",
                f"room for {config.world_sizes[0] - room} more",
                "wait until other jobs end, lower train.workers (a range [min, max] takes what is there) or train.cpus_per_worker, or add nodes",
            )
        if not is_told and waited > 2:
            logger.info("waiting for room for %d workers of %s (now: %d)", most, _describe(config.cpus_per_worker, config.use_gpu), room)
            is_told = True
        time.sleep(0.5)


def room_in_total(cpus_per_worker: float, *, use_gpu: bool) -> int:
    """Workers that all living machines could hold, were they empty; each must fit on one machine."""
    import ray

    return sum(_places(node["Resources"], cpus_per_worker, use_gpu) for node in ray.nodes() if node["Alive"])


def room_now(cpus_per_worker: float, *, use_gpu: bool) -> int:
    """Workers that find room beside everything else that runs."""
    import ray

    return min(room_in_total(cpus_per_worker, use_gpu=use_gpu), _places(ray.available_resources(), cpus_per_worker, use_gpu))


def _places(resources: Mapping[str, float], cpus_per_worker: float, use_gpu: bool) -> int:
    by_cpu = int(resources.get("CPU", 0) / cpus_per_worker + 1e-6)
    return min(by_cpu, int(resources.get("GPU", 0))) if use_gpu else by_cpu


def _free_words() -> str:
    import ray

    free = ray.available_resources()
    return f"{free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU"


def _describe(cpus_per_worker: float, use_gpu: bool) -> str:
    return f"{cpus_per_worker:g} CPU" + (" and 1 GPU" if use_gpu else "")
