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
from typing import Any

import torch

from medley.config import Run, dump_run, make_run
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
    remove_folder,
    verify_files,
    write_bytes,
    write_json,
    write_manifest,
)
from medley.schema import InputError
from medley.training.assemble import Assets, assemble_model, assemble_stream, check_model, learn_assets, make_plan
from medley.training.checkpoint import WEIGHTS_FILE, Progress, load_matching_weights, load_weights, read_checkpoint, read_newest
from medley.training.config import HOLDING_FIELDS
from medley.training.engine import DeepSpeedEngine
from medley.training.evaluate import make_questions
from medley.training.loop import Seat, Training, train
from medley.training.report import RunLog

logger = logging.getLogger(__name__)

RUN_KIND = "run"

FOLD_IN_FIELDS = ("given_share", "fold_in_unseen_weight", "fold_in_regularization")
"""Settings of `evaluate` that move the validation metric; where nothing is given to fold in, only the first."""


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
            changed = sorted(_differences(manifest["config"], wanted))
            return f" ('{name}' differs in {', '.join(changed[:4]) if changed else 'its tables'})"
    return ""


def _differences(found: Any, wanted: Any, prefix: str = "") -> set[str]:
    """Dotted keys whose values differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        parts = (_differences(found.get(key), wanted.get(key), f"{prefix}.{key}" if prefix else key) for key in {*found, *wanted})
        return set().union(*parts)
    return set() if found == wanted else {prefix}


def run_fingerprint(run: Run, data: PreparedData) -> str:
    """What decides the trained model: data, model, loss, training settings, seed; not how many workers hold it."""
    values = _deciding(dump_run(run))
    training = values["train"]
    if run.train.start_from:
        training["start_from"] = _start_manifest(run.train.start_from)["fingerprint"]
    return fingerprint(RUN_KIND, data.identity, values["model"], values["loss"], training, values["evaluate"], run.seed)


def _deciding(values: dict[str, Any]) -> dict[str, Any]:
    """Of a Run's plain values those that decide what is trained and which epoch is the best."""
    training = {key: value for key, value in values["train"].items() if key not in HOLDING_FIELDS}
    return {
        **{key: values[key] for key in ("data", "model", "loss", "seed")},
        "train": training,
        "evaluate": {key: values["evaluate"][key] for key in (FOLD_IN_FIELDS if values["evaluate"]["given_share"] else FOLD_IN_FIELDS[:1])},
    }


def fit(run: Run, *, fresh: bool = False) -> dict[str, Any]:
    """Train a run, resume it, or find it finished; needs a Ray session. Returns its uri, metrics and speed.

    fresh: remove what an earlier run of this name left. Raises InputError for mistakes of configuration and data.
    """
    started = time.monotonic()
    data = find_prepared(run)
    check_model(run.model, run.loss, data)
    _check_workers(run)
    identity = run_fingerprint(run, data)
    if fresh:
        remove_folder(run.run_uri)
    manifest = _claim(run, identity)
    is_reused = manifest is not None
    if manifest is None:
        if not exists(join_uri(run.run_uri, "assets", "done.json")):
            _write_assets(run, learn_assets(run.model.encoders, data))
        progress = _train_on_ray(run, data, identity)
        manifest = _finish(run, data, identity, progress)
    history = read_json(join_uri(run.run_uri, "history.json"))
    best = history[manifest["counts"]["best_epoch"]]
    return {
        "run": run.run_uri,
        "fingerprint": identity,
        "reused": is_reused,
        "best_epoch": manifest["counts"]["best_epoch"],
        "valid": best["valid"],
        "rows_per_second": round(best["rows_per_second"]),
        "steps_per_second": round(best["steps_per_second"], 3),
        "peak_memory_megabytes": round(best["peak_memory_megabytes"]),
        "seconds": round(time.monotonic() - started, 1),
    }


def _check_workers(run: Run) -> None:
    if run.train.num_micro_batches % run.train.workers:
        raise InputError(
            f"train.workers={run.train.workers} and train.num_micro_batches={run.train.num_micro_batches}",
            "a number of micro-batches that the workers divide evenly",
            "change one of them (num_micro_batches changes the result, workers does not)",
        )
    import ray

    resources = ray.cluster_resources()
    asked = {"CPU": run.train.workers * run.train.cpus_per_worker, "GPU": run.train.workers if run.train.use_gpu else 0}
    for name, amount in asked.items():
        if amount > resources.get(name, 0):
            raise InputError(
                f"train asks for {amount:g} {name} and the cluster has {resources.get(name, 0):g}",
                "no more than there is",
                "lower train.workers or train.cpus_per_worker, or add nodes",
            )


def _claim(run: Run, identity: str) -> dict[str, Any] | None:
    """Make the run folder ours; returns its manifest when the same run is finished there. Another run of this name is refused."""
    manifest, config_uri = find_manifest(run.run_uri), join_uri(run.run_uri, "config.json")
    if exists(config_uri):
        found = read_json(config_uri)
        if found["fingerprint"] != identity:
            before, now = found["run"], dump_run(run)
            # Both: settings that a changed given_share brings into play need not have changed themselves.
            changed = sorted(_differences(_deciding(before), _deciding(now)) & _differences(before, now))
            raise InputError(
                f"run '{run.name}' in '{run.storage}' was made with other {', '.join(changed[:6]) or 'data'}",
                "the same settings and data to resume it",
                "choose another name=, or start anew with --fresh",
            )
        logger.info("run %s | %s", run.name, "is finished" if manifest else "resumes")
        return manifest
    write_json(config_uri, {"fingerprint": identity, "run": dump_run(run)})
    return None


def _write_assets(run: Run, assets: Assets) -> None:
    for name, files in assets.items():
        for file, content in files.items():
            write_bytes(join_uri(run.run_uri, "assets", name, file), content)
    write_json(join_uri(run.run_uri, "assets", "done.json"), {name: sorted(files) for name, files in assets.items()})


def read_assets_of(run_uri: str) -> Assets:
    """What `learn_assets` wrote for a run."""
    names = read_json(join_uri(run_uri, "assets", "done.json"))
    return {name: {file: read_bytes(join_uri(run_uri, "assets", name, file)) for file in files} for name, files in names.items()}


def _train_on_ray(run: Run, data: PreparedData, identity: str) -> Progress:
    """One Ray Train run; its own storage holds nothing that we need, so it gets a new name each time and never resumes by itself."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    class Trainer(TorchTrainer):
        """Without Ray's cleaner of placement groups, which is for trainers inside trials: it asks the dashboard every second, and a local
        Ray has none. Ours are removed with the job."""

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]
            return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]

    attempt = f"{run.name}-{uuid.uuid4().hex[:8]}"
    settings = {"run": dump_run(run), "prepared": data.uri, "identity": identity, "attempt": attempt}
    trainer = Trainer(
        train_worker,  # type: ignore[arg-type]  # ray shows type checkers its v1 classes, which v2 replaces at import
        train_loop_config=settings,
        torch_config=TorchConfig(backend="nccl" if run.train.use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=run.train.workers, use_gpu=run.train.use_gpu, resources_per_worker=_resources(run)),
        run_config=RunConfig(
            name=attempt,
            storage_path=join_uri(run.storage, "ray"),
            failure_config=FailureConfig(max_failures=run.train.max_failures, controller_failure_limit=2),  # type: ignore[call-arg]
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
    return {"CPU": run.train.cpus_per_worker} | ({"GPU": 1.0} if run.train.use_gpu else {})


def _find_input_error(error: BaseException | None) -> InputError | None:
    """The user's mistake inside what Ray Train raises, if that is the cause."""
    if error is None or isinstance(error, InputError):
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
        torch.set_num_threads(max(1, int(run.train.cpus_per_worker)))
    folder = join_uri(run.run_uri, "checkpoints")
    checkpoint = read_newest(folder)
    model = assemble_model(run.model, data, read_assets_of(run.run_uri), run.seed, pretrained=checkpoint is None and run.train.start_from is None)
    if checkpoint is not None:
        load_weights(model, checkpoint.model.weights)
    elif run.train.start_from is not None:
        num_taken = load_matching_weights(model, read_weights_of(run.train.start_from))
        logger.info("start from %s | %d weights taken over", run.train.start_from, num_taken)
    plan = make_plan(run.train, data, run.seed)
    encoder_rates = {name: encoder.learning_rate for name, encoder in run.model.encoders.items()}
    engine = DeepSpeedEngine(
        model.to(device),
        run.train.optimizer,
        encoder_rates,
        run.train.engine,
        micro_batch_size=run.train.micro_batch_size,
        micro_batches_per_rank=run.train.num_micro_batches // seat.num_ranks,
        device=device,
    )
    stream = assemble_stream(engine.model, run.model, run.loss, data, plan, run.stream)
    log = RunLog(run.run_uri, f"{settings['attempt']}-{uuid.uuid4().hex[:4]}") if seat.rank == 0 else None
    training = Training(
        engine=engine,
        stream=stream,
        plan=plan,
        loss=run.loss,
        config=run.train,
        evaluate=run.evaluate,
        questions=make_questions(data, "valid", run.evaluate),
        train_count_N=torch.from_numpy(data.train_count_N).to(device),
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


def _prime(training: Training) -> torch.Tensor:
    """A scalar that depends on every weight that any step's loss depends on."""
    (batch,) = next(iter(training.stream.global_batches(0, 0, training.seat.micro_batches(training.plan.num_micro_batches)[:1])))
    training.engine.model.train()
    (scores_BU,) = training.engine.forward(batch.to(training.engine.device))
    return scores_BU.sum()


def read_weights_of(uri: str) -> dict[str, torch.Tensor]:
    """The weights of a finished run or search, hash verified."""
    from safetensors.torch import load

    verify_files(uri, _start_manifest(uri), prefix=WEIGHTS_FILE)
    return load(read_bytes(join_uri(uri, WEIGHTS_FILE)))


def _start_manifest(uri: str) -> dict[str, Any]:
    manifest = find_manifest(uri)
    if manifest is None or WEIGHTS_FILE not in manifest["files"]:
        raise InputError(
            f"'{uri}' holds {'no weights' if manifest else 'nothing finished'}", "the folder of a finished run or search", "correct train.start_from"
        )
    return manifest


def _finish(run: Run, data: PreparedData, identity: str, progress: Progress) -> dict[str, Any]:
    """Copy the best epoch's weights and scorer out of its checkpoint, then the manifest."""
    assert progress.best_checkpoint is not None
    assert progress.best_epoch is not None
    folder = join_uri(run.run_uri, "checkpoints")
    read_checkpoint(folder, progress.best_checkpoint)
    for name in (WEIGHTS_FILE, "scorer.safetensors"):
        write_bytes(join_uri(run.run_uri, name), read_bytes(join_uri(folder, progress.best_checkpoint, name)))
    write_json(join_uri(run.run_uri, "history.json"), progress.history)
    counts = {"best_epoch": progress.best_epoch, "num_steps": progress.step, "num_epochs": progress.epoch}
    files = ("assets", WEIGHTS_FILE, "scorer.safetensors", "history.json")
    return write_manifest(run.run_uri, RUN_KIND, identity, parents={"prepared": data.identity}, counts=counts, config=dump_run(run), only=files)
