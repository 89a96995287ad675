"""Runs outside the gradient loop: solved in one Ray task, which writes what evaluation and bundles read.

runs/NAME/scorer.safetensors, history.json   then the manifest, as for every run
"""

from collections.abc import Callable, Mapping
from typing import Any

import ray
import torch

from medley.data.prepared import PreparedData
from medley.heads.als import AlsConfig
from medley.heads.ease import EaseConfig
from medley.heads.vae import VaeConfig
from medley.manifest import join_uri, write_json, write_manifest
from medley.schema import InputError
from medley.training.als import train_als
from medley.training.blend import BlendConfig, train_blend
from medley.training.ease import train_ease
from medley.training.evaluate import EvaluateConfig
from medley.training.vae import train_vae

ClosedConfig = EaseConfig | AlsConfig | VaeConfig | BlendConfig

TRAINERS: Mapping[str, Callable[..., Any]] = {"ease": train_ease, "als": train_als, "vae": train_vae, "blend": train_blend}
"""kind → function of (config, data, evaluate, seed) that returns the scorer or blend, and the history (plain values, one entry per epoch)"""


def train_closed(
    config: ClosedConfig, data: PreparedData, evaluate: EvaluateConfig, seed: int, run_uri: str, kind: str, identity: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Solve a run and finish its folder; needs a Ray session. Returns the manifest. kind, identity, values: what the manifest says of the run."""
    workers = getattr(config, "workers", 1)
    # Where workers do the work, the task only waits for them.
    task: Any = ray.remote(num_cpus=config.cpus_per_worker if workers == 1 else 0, max_retries=2)(_solve)
    try:
        counts = ray.get(task.remote(config, data.uri, evaluate, seed, run_uri))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise
    parents = {"prepared": data.identity}
    files = ("scorer.safetensors", "history.json")
    return write_manifest(run_uri, kind, identity, parents=parents, counts=counts, config=dict(values), only=files)


def _solve(config: ClosedConfig, prepared_uri: str, evaluate: EvaluateConfig, seed: int, run_uri: str) -> dict[str, int]:
    torch.set_num_threads(max(1, int(config.cpus_per_worker)))
    scorer, history = TRAINERS[config.kind](config, PreparedData.open(prepared_uri), evaluate, seed)
    scorer.save(join_uri(run_uri, "scorer.safetensors"))
    write_json(join_uri(run_uri, "history.json"), history)
    return {"best_epoch": len(history) - 1, "num_epochs": len(history)}
