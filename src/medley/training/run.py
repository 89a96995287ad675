"""fit(run): the same function for the command line, pipelines and Python. `fitting.py` starts the workers with Ray Train, `worker.py` is one of them.

runs/NAME/config.json      the resolved configuration and the run's fingerprint, written first
runs/NAME/assets/ENCODER/  tokenizers and vocabularies
runs/NAME/checkpoints/     see checkpoint.py
runs/NAME/log/             JSONL and TensorBoard, one set per attempt; events.jsonl; stacks of ranks that hung
runs/NAME/scorer.safetensors, weights.safetensors, history.json   of the best epoch
runs/NAME/manifest.json    written last: the run is finished
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from medley.config import Run, dump_run
from medley.data.feature_store import read_weights
from medley.data.prepare import PREPARED_KIND, prepared_fingerprint
from medley.data.prepared import PreparedData
from medley.data.tables import open_tables
from medley.manifest import (
    exists,
    find_manifest,
    fingerprint,
    join_uri,
    list_folder,
    read_bytes,
    read_json,
    read_manifest,
    remove_folder,
    write_bytes,
    write_json,
    write_manifest,
)
from medley.owner import owned
from medley.schema import InputError
from medley.storage import beside_uri
from medley.training.assemble import check_model, learn_assets
from medley.training.assets import read_assets_of, write_assets
from medley.training.blend import BlendConfig, part_folders
from medley.training.checkpoint import SCORER_FILE, WEIGHTS_FILE, Progress, write_weights
from medley.training.checkpoint_choice import read_checkpoint
from medley.training.claim import claim, deciding_values, differences
from medley.training.closed import train_closed
from medley.training.config import GradientTrainConfig
from medley.training.features import FeatureCache
from medley.training.fitting import train_on_ray
from medley.training.placement import check_room, check_workers
from medley.training.start import Start, read_weights_of

logger = logging.getLogger(__name__)

RUN_KIND = "run"

SHOWN = ("valid", "rows_per_second", "steps_per_second", "peak_memory_megabytes", "loss", "rank", "lost", "weights", "alone")
"""Of the best epoch's entry in the history what `fit` returns; which of them there are depends on train.kind."""


def find_prepared(run: Run) -> PreparedData:
    """The prepared set a run reads: `inputs.prepared`, or the one that its tables, data settings and seed name."""
    if run.inputs.prepared:
        return PreparedData.open(run.inputs.prepared)
    identity = prepared_fingerprint(open_tables(run.tables_uri), run.data, run.seed)
    uri = join_uri(run.prepared_root, identity)
    if find_manifest(uri) is None:
        raise InputError(
            f"'{run.prepared_root}' has no data prepared with these tables, data settings and seed{_nearest_prepared(run)}",
            f"a finished set '{identity}'",
            "run jobs.prepare with this configuration",
        )
    return PreparedData.open(uri)


def _nearest_prepared(run: Run) -> str:
    """What differs from the sets that are there."""
    wanted = {"data": run.data.model_dump(mode="json"), "seed": run.seed}
    for name in list_folder(run.prepared_root):
        manifest = find_manifest(join_uri(run.prepared_root, name))
        if manifest and manifest["kind"] == PREPARED_KIND:
            changed = sorted(differences(manifest["config"], wanted))
            return f" ('{name}' differs in {', '.join(changed[:4]) if changed else 'its tables'})"
    return ""


def run_fingerprint(run: Run, data: PreparedData) -> str:
    """What decides the trained model: data, model, loss, training settings, seed; not how many workers hold it."""
    values = deciding_values(dump_run(run))
    training = values["train"]
    if isinstance(run.train, BlendConfig):
        training["runs"] = [read_manifest(uri, RUN_KIND)["fingerprint"] for uri in part_folders(run.train, run.storage).runs]
    elif isinstance(run.train, GradientTrainConfig) and run.train.start_from:
        training["start_from"] = Start.find(run.train.start_from, data).manifest["fingerprint"]
    if not isinstance(run.train, GradientTrainConfig):
        return fingerprint(RUN_KIND, data.identity, training, values["evaluate"], run.seed)
    return fingerprint(RUN_KIND, data.identity, values["model"], values["loss"], training, values["evaluate"], run.seed)


def fit(run: Run, *, fresh: bool = False) -> dict[str, Any]:
    """Train a run, resume it, or find it finished; needs a Ray session. Returns its uri, metrics and speed.

    fresh: remove what an earlier run of this name left. Raises InputError for mistakes of configuration and data, and where another process trains it.
    """
    started = time.monotonic()
    data = find_prepared(run)
    if isinstance(run.train, GradientTrainConfig):
        check_model(run.model, run.loss, data)
        check_workers(run.train, is_fixed=getattr(run.loss, "across_ranks", False))
    else:
        check_room(getattr(run.train, "workers", 1), run.train.cpus_per_worker, use_gpu=False)
    identity = run_fingerprint(run, data)
    with owned(beside_uri(run.run_uri, ".owner"), "run"):
        if fresh:
            remove_folder(run.run_uri)
        manifest = claim(run.run_uri, identity, dump_run(run))
        is_reused = manifest is not None
        if manifest is None:
            manifest = _train(run, data, identity)
    history = read_json(join_uri(run.run_uri, "history.json"))
    best = history[manifest["counts"]["best_epoch"]]
    return {
        "run": run.run_uri,
        "fingerprint": identity,
        "reused": is_reused,
        "best_epoch": manifest["counts"]["best_epoch"],
        **{key: round(best[key], 4) if isinstance(best[key], float) else best[key] for key in SHOWN if key in best},
        "seconds": round(time.monotonic() - started, 1),
    }


def _train(run: Run, data: PreparedData, identity: str) -> dict[str, Any]:
    """Train a run that is not finished; returns its manifest."""
    if not isinstance(run.train, GradientTrainConfig):
        config = part_folders(run.train, run.storage) if isinstance(run.train, BlendConfig) else run.train
        return train_closed(config, data, run.evaluate, run.seed, run.run_uri, RUN_KIND, identity, dump_run(run))
    if not exists(join_uri(run.run_uri, "assets", "done.json")):
        kept = Start.find(run.train.start_from, data).assets(run.model.encoders) if run.train.start_from else {}
        write_assets(run.run_uri, kept | learn_assets({name: encoder for name, encoder in run.model.encoders.items() if name not in kept}, data))
    features = feature_cache(run).find(data, read_assets_of(run.run_uri))
    progress = train_on_ray(run, data, identity, features)
    return _finish(run, data, identity, progress, features)


def feature_cache(run: Run, names: Sequence[str] | None = None, weights_of: str | None = None) -> FeatureCache:
    """The feature cache of these encoders, by default those with `cache: true`, with the weights of a finished run, by default that of `start_from`."""
    # Closed forms run no encoder and say nothing of how one would run.
    train = run.train if isinstance(run.train, GradientTrainConfig) else GradientTrainConfig()
    start = weights_of or train.start_from
    encoders = {name: encoder for name, encoder in run.model.encoders.items() if (encoder.cache if names is None else name in names)}
    weights = read_weights_of(start) if start and encoders else {}
    return FeatureCache(join_uri(run.storage, "features"), encoders, weights, train, run.stream.decode_threads)


def _finish(run: Run, data: PreparedData, identity: str, progress: Progress, features: Mapping[str, str]) -> dict[str, Any]:
    """Copy the best epoch's weights and scorer out of its checkpoint, the weights of cached encoders beside them, then the manifest."""
    assert progress.best_checkpoint is not None
    assert progress.best_epoch is not None
    folder = join_uri(run.run_uri, "checkpoints")
    best = read_checkpoint(folder, progress.best_checkpoint)
    # Checkpoints lack the encoders that did not run; the bundle needs them for items that come later.
    cached = {f"encoders.{name}.{key}": value for name, uri in features.items() for key, value in read_weights(uri).items()}
    write_weights(join_uri(run.run_uri, WEIGHTS_FILE), best.state, cached)
    write_bytes(join_uri(run.run_uri, SCORER_FILE), read_bytes(join_uri(folder, best.name, SCORER_FILE)))
    write_json(join_uri(run.run_uri, "history.json"), progress.history)
    counts = {"best_epoch": progress.best_epoch, "num_steps": progress.step, "num_epochs": progress.epoch}
    files = ("assets", WEIGHTS_FILE, SCORER_FILE, "history.json")
    return write_manifest(run.run_uri, RUN_KIND, identity, parents={"prepared": data.identity}, counts=counts, config=dump_run(run), only=files)
