"""Light trials: the loop of training on cached vectors, in processes that Ray Tune keeps and gives one trial after the other.

A trial has the plan, the batches, the loss and the validation of the real run; only the encoders are replaced by their vectors.
"""

import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from ray import tune
from torch import Tensor

from medley.config import Run, dump_run, make_run, override_run
from medley.data.batches import BatchMaker
from medley.data.memory import CatalogueVectors, MemoryStream
from medley.data.prepared import PreparedData
from medley.manifest import join_uri
from medley.search.spaces import Space
from medley.training.assemble import assemble_model, make_plan, table_maker
from medley.training.checkpoint import Progress
from medley.training.engine import TorchEngine
from medley.training.evaluate import Questions, make_questions
from medley.training.loop import Training, train_epoch
from medley.training.seat import Seat

logger = logging.getLogger(__name__)

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer output prints a banner at any verbosity
    "TUNE_GLOBAL_CHECKPOINT_S": "2",  # an interruption repeats the trials that ended in the last seconds before it
}


@dataclass(frozen=True)
class TrialInputs:
    """What all trials share; lies once in the object store of each node. settings: the Run as plain values. vectors: None without encoders."""

    settings: dict[str, Any]
    space: Space
    data: PreparedData
    questions: Questions
    vectors: CatalogueVectors | None

    @classmethod
    def gather(cls, run: Run, space: Space, prepared_uri: str, vectors: CatalogueVectors | None) -> "TrialInputs":
        """Read what training and validation need; the test split stays closed."""
        data = PreparedData.open(prepared_uri)
        # Cached properties travel with the object, so that no trial reads or sorts anything again.
        data.train_lists, data.item_facts, data.users  # noqa: B018
        return cls(dump_run(run), space, data, make_questions(data, "valid", run.evaluate), vectors)


@dataclass(frozen=True)
class TrialRecord:
    """How one trial went. parameters: changes of the configuration, empty for the configuration as it is; sampled: as the sampler gave them.

    metrics: one value per epoch. started: Unix time in seconds.
    """

    trial: int
    parameters: Mapping[str, Any]
    sampled: Mapping[str, Any]
    metrics: list[float]
    started: float
    seconds: float
    stopped_early: bool
    error: str | None

    @property
    def is_whole(self) -> bool:
        """Whether it ended by itself or was stopped early, not by an error."""
        return self.error is None and len(self.metrics) > 0

    @property
    def best(self) -> float:
        """The metric of the best epoch, as training would keep it."""
        return max(self.metrics)


def assemble_trial(run: Run, inputs: TrialInputs) -> Training:
    """The parts of training for one configuration, over cached vectors, in this process."""
    data, vectors = inputs.data, inputs.vectors or CatalogueVectors({}, {})
    run = override_run(run, {"train.epochs": run.search.trial_epochs, **_pooled_sizes(run)})
    table = table_maker(run.gradient, run.seed, 0, 1, torch.device("cpu"))
    model = assemble_model(run.model, data, {}, run.seed, pretrained=False, vectors=vectors, table=table)
    plan = make_plan(run.gradient, data, run.seed)
    maker = BatchMaker.create(
        data,
        plan,
        history_length=run.model.users.history_length,
        attribute_columns=run.model.users.columns,
        whole_catalogue=run.loss.kind == "full_softmax",
        num_uniform_negatives=run.loss.num_uniform_negatives,
    )
    return Training(
        engine=TorchEngine(model, run.gradient.optimizer, {}, run.gradient.num_micro_batches),
        stream=MemoryStream(maker, model.named_encoders, vectors),
        plan=plan,
        loss=run.loss,
        config=run.gradient,
        evaluate=run.evaluate,
        questions=inputs.questions,
        train_count_N=torch.from_numpy(plan.expected_count_N(data.train_count_N)),
        seat=Seat(0, 1),
        checkpoints=None,
        log=None,
    )


def _pooled_sizes(run: Run) -> dict[str, int]:
    """Where the run's workers pool their items, its trials have them in one micro-batch: the same rows, the same loss."""
    if not getattr(run.loss, "across_ranks", False):
        return {}
    train, num_ranks = run.gradient, run.gradient.max_workers
    return {"train.micro_batch_size": train.micro_batch_size * num_ranks, "train.num_micro_batches": train.num_micro_batches // num_ranks, "train.workers": 1}


def train_light(run: Run, inputs: TrialInputs) -> dict[str, Tensor]:
    """Train one configuration as a trial does, in this process. Returns the best epoch's weights by name, those of the encoders left out."""
    training, progress = assemble_trial(run, inputs), Progress()
    weights: dict[str, Tensor] = {}
    while progress.epoch < training.config.epochs:
        train_epoch(training, progress)
        if progress.best_epoch == progress.epoch - 1:
            weights = {name: tensor.clone() for name, tensor in training.engine.model.state_dict().items() if not name.startswith("encoders.")}
    return weights


class LightTrial(tune.Trainable):
    """One epoch and its validation a step. The process is kept for the next trial."""

    def setup(self, config: dict[str, Any], inputs: TrialInputs) -> None:  # type: ignore[override]  # as tune.with_parameters calls it
        """Called once per process."""
        torch.set_num_threads(1)
        self.inputs = inputs
        self.run_as_it_is = make_run(inputs.settings, "trial")
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start the next trial; its time includes its assembly."""
        self.started = time.time()
        run = override_run(self.run_as_it_is, self.inputs.space.changes(new_config))
        self.training = assemble_trial(run, self.inputs)
        self.progress = Progress()
        self.metrics: list[float] = []
        return True

    def step(self) -> dict[str, Any]:
        """best: the metric of the best epoch so far, which is what training keeps; metrics: of every epoch."""
        train_epoch(self.training, self.progress)
        value = self.progress.history[-1]["valid"].get(self.training.config.metric)
        # Where nobody has a relevant item there is no metric; searchers want a number.
        self.metrics.append(float(value) if value is not None else -1.0)
        return {
            "best": max(self.metrics),
            "metrics": self.metrics,
            "started": self.started,
            "seconds": time.time() - self.started,
            "done": self.progress.epoch >= self.training.config.epochs,
        }


class TrialLines(tune.Callback):
    """One log line per finished trial."""

    def __init__(self, metric: str, num_trials: int, num_epochs: int, space: Space):
        self.metric = metric
        self.num_trials = num_trials
        self.num_epochs = num_epochs
        self.space = space

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called in the process that runs the search."""
        result = trial.last_result
        outcome = f"valid {self.metric} {result['best']:.4f} | {len(result['metrics'])} of {self.num_epochs} epochs | {result['seconds']:.1f} s"
        self._log(trials, trial, outcome)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The search goes on without it."""
        self._log(trials, trial, "failed, its traceback is above")

    def _log(self, trials: list[Any], trial: Any, outcome: str) -> None:
        num_finished = sum(other.is_finished() or other is trial for other in trials)
        logger.info("trial %d/%d | %s | %s", num_finished, self.num_trials, outcome, describe(self.space.changes(trial.config)))


def describe(parameters: Mapping[str, Any]) -> str:
    """Changes of the configuration on one line."""
    parts = [f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={json.dumps(value)}" for key, value in parameters.items()]
    return ", ".join(parts) or "the configuration as it is"


def run_trials(run: Run, space: Space, inputs: TrialInputs, folder: str, identity: str, *, resume: bool) -> list[TrialRecord]:
    """All trials of a search, in their order; Ray Tune keeps its state in `folder/identity` and goes on from it with resume=True."""
    import optuna
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = run.search
    trainable = tune.with_resources(tune.with_parameters(LightTrial, inputs=inputs), {"CPU": 1})
    # Results come from memory; the files of Tune's loggers are not missed.
    logging.getLogger("ray.tune.tune").setLevel(logging.WARNING)
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    # A trial that starts again after an interruption reports its epochs to Optuna once more.
    warnings.filterwarnings("ignore", message="The reported value is ignored")
    with _environment(TUNE_ENVIRONMENT):
        if resume and tune.Tuner.can_restore(join_uri(folder, identity)):
            tuner = tune.Tuner.restore(join_uri(folder, identity), trainable, restart_errored=True)
        else:
            tuner = tune.Tuner(
                trainable,
                param_space=space.domains(),
                tune_config=tune.TuneConfig(
                    metric="best",
                    mode="max",
                    num_samples=settings.num_trials,
                    max_concurrent_trials=settings.concurrent_trials,
                    search_alg=OptunaSearch(points_to_evaluate=[dict(space.own_point)], seed=run.seed),
                    scheduler=ASHAScheduler(
                        max_t=settings.trial_epochs, grace_period=settings.grace_epochs, reduction_factor=settings.reduction_factor, stop_last_trials=False
                    ),
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name=identity,
                    storage_path=folder,
                    verbose=0,
                    # Trials are short: one that is interrupted starts again, and only the best configuration is kept.
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    callbacks=[TrialLines(run.train.metric, settings.num_trials, settings.trial_epochs, space)],
                ),
            )
        results = tuner.fit()
    ended = sorted((results[number] for number in range(len(results))), key=lambda result: (result.metrics or {}).get("started", float("inf")))
    return [_record(number, result, space, settings.trial_epochs) for number, result in enumerate(ended)]


def _record(number: int, result: Any, space: Space, num_epochs: int) -> TrialRecord:
    last: dict[str, Any] = result.metrics if result.metrics and "metrics" in result.metrics else {"metrics": [], "started": 0.0, "seconds": 0.0}
    return TrialRecord(
        trial=number,
        parameters=space.changes(result.config),
        sampled=dict(result.config),
        metrics=last["metrics"],
        started=last["started"],
        seconds=round(last["seconds"], 3),
        stopped_early=result.error is None and len(last["metrics"]) < num_epochs,
        error=str(result.error).strip().splitlines()[-1] if result.error is not None else None,
    )


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
