"""One rank of a training run, as Ray Train starts it: build, resume where the newest good checkpoint stands, train."""

import contextlib
import logging
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from medley.config import Run, make_run
from medley.data.prepared import PreparedData
from medley.manifest import join_uri
from medley.training.assemble import assemble_model, assemble_stream, make_plan, table_maker
from medley.training.assets import read_assets_of
from medley.training.checkpoint import Checkpoint, Progress, load_weights
from medley.training.checkpoint_choice import read_newest
from medley.training.checkpoint_writing import CheckpointWriter
from medley.training.engine import build_engine
from medley.training.evaluate import make_questions
from medley.training.events import RankEvents
from medley.training.faults import fault_kind
from medley.training.features import read_vectors
from medley.training.loop import Training, train
from medley.training.notices import AttemptEndedError, Notices
from medley.training.report import RunLog
from medley.training.seat import Seat
from medley.training.sharded_building import announce_sharding
from medley.training.start import Start
from medley.training.timing import StepClock
from medley.training.watchdog import Watchdog, stacks_uri

logger = logging.getLogger(__name__)


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """One rank. Returns how the attempt ended (`finished`, `preempted` or `resized`) and its progress; rank 0's is kept."""
    import ray.train
    import ray.train.torch

    _quiet_worker()
    context = ray.train.get_context()
    seat = Seat(context.get_world_rank(), context.get_world_size())
    run = make_run(settings["run"], "worker")
    events = RankEvents(run.run_uri, settings["attempt"], seat.rank)
    progress = Progress()
    try:
        checkpoint = read_newest(join_uri(run.run_uri, "checkpoints"), seat)
        progress = checkpoint.progress if checkpoint is not None else progress
        device = ray.train.torch.get_device()
        with (
            announce_sharding(run.gradient.engine, run.gradient.micro_batch_size, device),
            _watched(run, settings["attempt"], seat, events, progress) as clock,
        ):
            training = _build(run, settings, seat, device, clock, checkpoint)
            if seat.rank == 0:
                place = f"epoch {progress.epoch}, global batch {progress.global_batch}"
                source = f"resumes {checkpoint.name}" if checkpoint is not None else "starts"
                events.write("training", f"{seat.num_ranks} ranks at ZeRO-{run.gradient.engine.zero_stage}; {source} at {place}", progress.step)
            train(training, progress)
            _close(training, progress)
        return {"ended": "finished", "progress": vars(progress)}
    except AttemptEndedError as ended:
        _close(training, progress)
        events.write(ended.why, "all ranks saved a checkpoint after this step and end", progress.step)
        return {"ended": ended.why, "progress": vars(progress)}
    except Exception as error:
        with contextlib.suppress(Exception):  # storage may be what failed
            events.write(fault_kind(error), str(error)[:2000], progress.step)
        raise


@contextlib.contextmanager
def _watched(run: Run, attempt: int, seat: Seat, events: RankEvents, progress: Progress) -> Iterator[StepClock]:
    """The rank's clock, whose phases are the beats of its watchdog where it has one."""
    device = torch.device("cuda" if run.gradient.use_gpu else "cpu")
    seconds = run.gradient.watchdog_seconds
    if seconds is None:
        yield StepClock(device)
        return
    with Watchdog(seconds, stacks_uri(run.run_uri, attempt, seat.rank), lambda message: events.write("hung", message, progress.step)) as watchdog:
        yield StepClock(device, watchdog.beat)


def _build(run: Run, settings: dict[str, Any], seat: Seat, device: torch.device, clock: StepClock, checkpoint: Checkpoint | None) -> Training:
    """All that the rank trains with, weights and optimiser as the checkpoint has them."""
    data = PreparedData.open(settings["prepared"])
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(run.gradient.cpus_per_worker)))
    vectors = read_vectors(settings["features"], run.model.encoders, data) if settings["features"] else None
    dtype = torch.bfloat16 if run.gradient.engine.precision == "bf16" else torch.float32
    table = table_maker(run.gradient, run.seed, seat.rank, seat.num_ranks, device, dtype)
    model = assemble_model(run.model, data, read_assets_of(run.run_uri), run.seed, pretrained=checkpoint is None, vectors=vectors, table=table)
    clock.beat()
    if checkpoint is not None:
        load_weights(model, checkpoint.state, seat.rank)
    elif run.gradient.start_from is not None:
        num_taken = Start.find(run.gradient.start_from, data).fill(model, run.model.encoders, data)
        logger.info("start from %s | %d weights taken over", run.gradient.start_from, num_taken)
    plan = make_plan(run.gradient, data, run.seed)
    encoder_rates = {name: encoder.learning_rate for name, encoder in run.model.encoders.items()}
    engine = build_engine(model.to(device), run.gradient, encoder_rates, seat.num_ranks, device)
    clock.beat()
    notices = Notices(seat.num_ranks)
    training = Training(
        engine=engine,
        stream=assemble_stream(engine.model, run.model, run.loss, data, plan, run.stream, vectors, seat.num_ranks),
        plan=plan,
        loss=run.loss,
        config=run.gradient,
        evaluate=run.evaluate,
        questions=make_questions(data, "valid", run.evaluate),
        train_count_N=torch.from_numpy(plan.expected_count_N(data.train_count_N)).to(device),
        seat=seat,
        checkpoints=CheckpointWriter(
            join_uri(run.run_uri, "checkpoints"),
            settings["identity"],
            {"num_ranks": seat.num_ranks, **run.gradient.engine.model_dump()},
            keep=run.gradient.keep_checkpoints,
            seat=seat,
        ),
        log=RunLog(run.run_uri, f"{settings['name']}-{uuid.uuid4().hex[:4]}") if seat.rank == 0 else None,
        clock=clock,
        notices=notices,
    )
    if checkpoint is not None:
        engine.restore(checkpoint.state, prime=lambda: _prime(training))
    if seat.rank == 0:
        notices.look_for_room(run.gradient, seat.num_ranks)
    return training


def _close(training: Training, progress: Progress) -> None:
    training.stream.close()
    if training.log is not None:
        training.log.summary(progress.step, training.clock.read())
        training.log.close()


def _prime(training: Training) -> torch.Tensor:
    """A scalar that depends on every weight that any step's loss depends on."""
    (batch,) = next(iter(training.stream.global_batches(0, 0, training.seat.micro_batches(training.plan.num_micro_batches)[:1])))
    training.engine.model.train()
    scores_BU = training.engine.forward(batch.to(training.engine.device))[0]
    return scores_BU.sum()


def _quiet_worker() -> None:
    """Our own lines only: Ray Data announces every window's execution, torch repeats its deprecations on every collective."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s | %(message)s", datefmt="%H:%M:%S")
    for name in ("ray.data", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks")
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
