"""fit(run): the same function for the command line, pipelines and Python. Ray Train starts the workers, which call `train_worker`.

runs/NAME/config.json      the resolved configuration and the run's fingerprint, written first
runs/NAME/assets/ENCODER/  tokenizers and vocabularies
runs/NAME/checkpoints/     see checkpoint.py
runs/NAME/log/             JSONL and TensorBoard, one set per attempt
runs/NAME/scorer.safetensors, weights.safetensors, history.json   of the best epoch
runs/NAME/manifest.json    written last: the run is finished
"""

import logging
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load, save

from medley.config import Run, dump_run, make_run
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
from medley.schema import InputError
from medley.storage import StorageError
from medley.training.assemble import Assets, assemble_model, assemble_stream, check_model, learn_assets, make_plan
from medley.training.blend import BlendConfig, part_folders
from medley.training.checkpoint import WEIGHTS_FILE, Progress, load_weights, read_checkpoint, read_newest
from medley.training.claim import claim, deciding_values, differences
from medley.training.closed import train_closed
from medley.training.config import GradientTrainConfig
from medley.training.engine import DeepSpeedEngine
from medley.training.evaluate import make_questions
from medley.training.features import FeatureCache, read_vectors
from medley.training.loop import Seat, Training, train
from medley.training.report import RunLog
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

    fresh: remove what an earlier run of this name left. Raises InputError for mistakes of configuration and data.
    """
    started = time.monotonic()
    data = find_prepared(run)
    if isinstance(run.train, GradientTrainConfig):
        check_model(run.model, run.loss, data)
    _check_workers(run)
    identity = run_fingerprint(run, data)
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
        _write_assets(run, kept | learn_assets({name: encoder for name, encoder in run.model.encoders.items() if name not in kept}, data))
    features = feature_cache(run).find(data, read_assets_of(run.run_uri))
    progress = _train_on_ray(run, data, identity, features)
    return _finish(run, data, identity, progress, features)


def feature_cache(run: Run, names: Sequence[str] | None = None, weights_of: str | None = None) -> FeatureCache:
    """The feature cache of these encoders, by default those with `cache: true`, with the weights of a finished run, by default that of `start_from`."""
    # Closed forms run no encoder and say nothing of how one would run.
    train = run.train if isinstance(run.train, GradientTrainConfig) else GradientTrainConfig()
    start = weights_of or train.start_from
    encoders = {name: encoder for name, encoder in run.model.encoders.items() if (encoder.cache if names is None else name in names)}
    weights = read_weights_of(start) if start and encoders else {}
    return FeatureCache(join_uri(run.storage, "features"), encoders, weights, train, run.stream.decode_threads)


def _check_workers(run: Run) -> None:
    workers, use_gpu = getattr(run.train, "workers", 1), getattr(run.train, "use_gpu", False)
    if isinstance(run.train, GradientTrainConfig) and run.train.num_micro_batches % workers:
        raise InputError(
            f"train.workers={run.train.workers} and train.num_micro_batches={run.train.num_micro_batches}",
            "a number of micro-batches that the workers divide evenly",
            "change one of them (num_micro_batches changes the result, workers does not)",
        )
    import ray

    resources = ray.cluster_resources()
    asked = {"CPU": workers * run.train.cpus_per_worker, "GPU": workers if use_gpu else 0}
    for name, amount in asked.items():
        if amount > resources.get(name, 0):
            raise InputError(
                f"train asks for {amount:g} {name} and the cluster has {resources.get(name, 0):g}",
                "no more than there is",
                "lower train.workers or train.cpus_per_worker, or add nodes",
            )


def _write_assets(run: Run, assets: Assets) -> None:
    for name, files in assets.items():
        for file, content in files.items():
            write_bytes(join_uri(run.run_uri, "assets", name, file), content)
    write_json(join_uri(run.run_uri, "assets", "done.json"), {name: sorted(files) for name, files in assets.items()})


def read_assets_of(run_uri: str) -> Assets:
    """What `learn_assets` wrote for a run."""
    names = read_json(join_uri(run_uri, "assets", "done.json"))
    return {name: {file: read_bytes(join_uri(run_uri, "assets", name, file)) for file in files} for name, files in names.items()}


def _train_on_ray(run: Run, data: PreparedData, identity: str, features: Mapping[str, str]) -> Progress:
    """One Ray Train run; its own storage holds nothing that we need, so it gets a new name each time and never resumes by itself.

    features: cached encoder → folder of its vectors.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    class Trainer(TorchTrainer):
        """Without Ray's cleaner of placement groups, which is for trainers inside trials: it asks the dashboard every second, and a local
        Ray has none. Ours are removed with the job."""

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]
            return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]

    attempt = f"{run.name}-{uuid.uuid4().hex[:8]}"
    settings = {"run": dump_run(run), "prepared": data.uri, "identity": identity, "attempt": attempt, "features": dict(features)}
    trainer = Trainer(
        train_worker,  # type: ignore[arg-type]  # ray shows type checkers its v1 classes, which v2 replaces at import
        train_loop_config=settings,
        torch_config=TorchConfig(backend="nccl" if run.gradient.use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=run.gradient.workers, use_gpu=run.gradient.use_gpu, resources_per_worker=_resources(run)),
        run_config=RunConfig(
            name=attempt,
            storage_path=join_uri(run.storage, "ray"),
            failure_config=FailureConfig(max_failures=run.gradient.max_failures, controller_failure_limit=2),  # type: ignore[call-arg]
        ),
    )
    try:
        result = trainer.fit()
    except Exception as error:
        mistake = _find_input_error(error)
        if mistake is not None:
            raise mistake from None
        raise
    finally:
        remove_folder(join_uri(run.storage, "ray", attempt))
    return Progress(**result.return_value)  # type: ignore[attr-defined]


def _resources(run: Run) -> dict[str, float]:
    return {"CPU": run.gradient.cpus_per_worker} | ({"GPU": 1.0} if run.gradient.use_gpu else {})


def _find_input_error(error: BaseException | None) -> InputError | StorageError | None:
    """The user's mistake, or the storage's failure, inside what Ray Train raises, if that is the cause."""
    if error is None or isinstance(error, InputError | StorageError):
        return error
    for inner in [*getattr(error, "worker_failures", {}).values(), error.__cause__]:
        found = _find_input_error(inner)
        if found is not None:
            return found
    return None


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """One rank: build, resume where the newest good checkpoint stands, train. Returns the progress (rank 0's is kept)."""
    import ray.train
    import ray.train.torch

    _quiet_worker()
    context = ray.train.get_context()
    seat = Seat(context.get_world_rank(), context.get_world_size())
    run = make_run(settings["run"], "worker")
    data = PreparedData.open(settings["prepared"])
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(run.gradient.cpus_per_worker)))
    folder = join_uri(run.run_uri, "checkpoints")
    checkpoint = read_newest(folder)
    vectors = read_vectors(settings["features"], run.model.encoders, data) if settings["features"] else None
    assets = read_assets_of(run.run_uri)
    model = assemble_model(run.model, data, assets, run.seed, pretrained=checkpoint is None, vectors=vectors)
    if checkpoint is not None:
        load_weights(model, checkpoint.model.weights)
    elif run.gradient.start_from is not None:
        num_taken = Start.find(run.gradient.start_from, data).fill(model, run.model.encoders, data)
        logger.info("start from %s | %d weights taken over", run.gradient.start_from, num_taken)
    plan = make_plan(run.gradient, data, run.seed)
    encoder_rates = {name: encoder.learning_rate for name, encoder in run.model.encoders.items()}
    engine = DeepSpeedEngine(
        model.to(device),
        run.gradient.optimizer,
        encoder_rates,
        run.gradient.engine,
        micro_batch_size=run.gradient.micro_batch_size,
        micro_batches_per_rank=run.gradient.num_micro_batches // seat.num_ranks,
        device=device,
    )
    stream = assemble_stream(engine.model, run.model, run.loss, data, plan, run.stream, vectors)
    log = RunLog(run.run_uri, f"{settings['attempt']}-{uuid.uuid4().hex[:4]}") if seat.rank == 0 else None
    training = Training(
        engine=engine,
        stream=stream,
        plan=plan,
        loss=run.loss,
        config=run.gradient,
        evaluate=run.evaluate,
        questions=make_questions(data, "valid", run.evaluate),
        train_count_N=torch.from_numpy(plan.expected_count_N(data.train_count_N)).to(device),
        seat=seat,
        checkpoint_folder=folder,
        log=log,
        identity=settings["identity"],
    )
    progress = Progress()
    if checkpoint is not None:
        progress = checkpoint.progress
        logger.info("resume from %s | epoch %d, global batch %d", checkpoint.name, progress.epoch, progress.global_batch)
        engine.restore(checkpoint.model, prime=lambda: _prime(training))
    progress = train(training, progress)
    stream.close()
    if log is not None:
        log.close()
    return vars(progress)


def _quiet_worker() -> None:
    """Our own lines only: Ray Data announces every window's execution, torch repeats its deprecations on every collective."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s | %(message)s", datefmt="%H:%M:%S")
    for name in ("ray.data", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks")
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


def _prime(training: Training) -> torch.Tensor:
    """A scalar that depends on every weight that any step's loss depends on."""
    (batch,) = next(iter(training.stream.global_batches(0, 0, training.seat.micro_batches(training.plan.num_micro_batches)[:1])))
    training.engine.model.train()
    scores_BU = training.engine.forward(batch.to(training.engine.device))[0]
    return scores_BU.sum()


def _finish(run: Run, data: PreparedData, identity: str, progress: Progress, features: Mapping[str, str]) -> dict[str, Any]:
    """Copy the best epoch's weights and scorer out of its checkpoint, the weights of cached encoders beside them, then the manifest."""
    assert progress.best_checkpoint is not None
    assert progress.best_epoch is not None
    folder = join_uri(run.run_uri, "checkpoints")
    read_checkpoint(folder, progress.best_checkpoint)
    best = {name: read_bytes(join_uri(folder, progress.best_checkpoint, name)) for name in (WEIGHTS_FILE, "scorer.safetensors")}
    if features:
        # Checkpoints lack the encoders that did not run; the bundle needs them for items that come later.
        own = {f"encoders.{name}.{key}": value for name, uri in features.items() for key, value in read_weights(uri).items()}
        best[WEIGHTS_FILE] = save(load(best[WEIGHTS_FILE]) | own)
    for name, content in best.items():
        write_bytes(join_uri(run.run_uri, name), content)
    write_json(join_uri(run.run_uri, "history.json"), progress.history)
    counts = {"best_epoch": progress.best_epoch, "num_steps": progress.step, "num_epochs": progress.epoch}
    files = ("assets", WEIGHTS_FILE, "scorer.safetensors", "history.json")
    return write_manifest(run.run_uri, RUN_KIND, identity, parents={"prepared": data.identity}, counts=counts, config=dump_run(run), only=files)
