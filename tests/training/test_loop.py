"""The loop in one process, without Ray: it finds a pattern that lies in one modality's content, and only there."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from medley.config import make_run
from medley.data.batches import BatchMaker, PreparedItems
from medley.data.memory import MemoryStream
from medley.data.prepare import PREPARED_KIND
from medley.data.prepared import PreparedData
from medley.index.scorer import Scorer
from medley.manifest import staged_folder, write_parquet
from medley.media import encode_flac, encode_jpeg
from medley.schema import PREPARED_INTERACTIONS_SCHEMA, Batch
from medley.training.assemble import assemble_model, make_plan
from medley.training.baselines import popularity_scorer
from medley.training.checkpoint import Progress, load_weights
from medley.training.checkpoint_choice import read_checkpoint
from medley.training.checkpoint_writing import CheckpointWriter
from medley.training.engine import TorchEngine
from medley.training.evaluate import EvaluateConfig, Questions, VectorRanker, make_questions, rank_users, summarise
from medley.training.faults import LossNotFiniteError
from medley.training.loop import Training, train, train_epoch, train_step
from medley.training.seat import Seat

NUM_GROUPS, NUM_WARM, NUM_COLD, NUM_USERS = 4, 60, 20, 40
"""Item i and user u belong to group i mod 4 and u mod 4; users have items of their own group only."""

SAMPLE_RATE_HZ = 8000
WORDS = (("apple", "pear", "plum"), ("river", "lake", "sea"), ("drum", "flute", "harp"), ("red", "green", "blue"))


def word_text(group: int, random: np.random.Generator) -> str:
    return " ".join(random.choice(WORDS[group], 4))


def coloured_picture(group: int, random: np.random.Generator) -> bytes:
    colour = torch.tensor([(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40)][group], dtype=torch.uint8)
    noise_CHW = torch.from_numpy(random.integers(0, 50, (3, 16, 16), dtype=np.uint8))
    return encode_jpeg(colour[:, None, None] + noise_CHW, quality=90)


def pitched_sound(group: int, random: np.random.Generator) -> bytes:
    seconds_S = np.arange(SAMPLE_RATE_HZ // 4) / SAMPLE_RATE_HZ
    tone_S = np.sin(2 * np.pi * 300 * 1.8**group * seconds_S) + 0.1 * random.standard_normal(len(seconds_S))
    return encode_flac(torch.from_numpy(0.5 * tone_S).float(), SAMPLE_RATE_HZ)


MODALITIES: dict[str, tuple[dict[str, Any], Callable[[int, np.random.Generator], Any]]] = {
    "text": ({"kind": "subword", "vocabulary_size": 60, "dimension": 8}, word_text),
    "image": ({"kind": "resnet", "side_pixels": 16, "width": 8, "small_stem": True}, coloured_picture),
    "audio": ({"kind": "logmel_cnn", "sample_rate_hz": SAMPLE_RATE_HZ, "clip_seconds": 0.25, "num_mel_bins": 16, "width": 8}, pitched_sound),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Each user had 10 of the 15 warm items of their group in train; in valid they want its 5 cold ones, which only content can tell apart."""
    random = np.random.default_rng(3)
    train, valid = [], []
    for user in range(NUM_USERS):
        group = user % NUM_GROUPS
        train += [(user, int(item)) for item in random.permutation(np.arange(group, NUM_WARM, NUM_GROUPS))[:10]]
        valid += [(user, item) for item in range(NUM_WARM + group, NUM_WARM + NUM_COLD, NUM_GROUPS)]
    random.shuffle(train)
    counts = np.bincount([item for _, item in train], minlength=NUM_WARM + NUM_COLD)
    uri = str(tmp_path_factory.mktemp("planted") / "prepared")
    facts = {"value": 1.0, "weight": 1.0, "is_target": True}
    with staged_folder(uri) as stage:
        for name, pairs in {"train": train, "valid": valid, "test": valid}.items():
            rows = [{"user_index": user, "item_index": item, "timestamp": place, **facts} for place, (user, item) in enumerate(pairs)]
            write_parquet(stage.path(name, "part-00000.parquet"), pa.Table.from_pylist(rows, PREPARED_INTERACTIONS_SCHEMA))
        write_parquet(stage.path("item_facts.parquet"), pa.table({"item_id": [str(item) for item in range(len(counts))], "train_count": pa.array(counts)}))
        write_parquet(stage.path("users.parquet"), pa.table({"user_id": [str(user) for user in range(NUM_USERS)]}))
        sizes = {"num_items": len(counts), "num_users": NUM_USERS, "columns": list(MODALITIES)}
        stage.commit(PREPARED_KIND, "feedc0ffee123456", parents={}, counts=sizes, config={})
    return PreparedData.open(uri)


def training_of(data: PreparedData, modality: str, folder: Path | None = None, *, shuffled: bool = False, **settings: Any) -> Training:
    """A training on one modality. shuffled: the same contents, dealt out to the items at random."""
    encoder, draw = MODALITIES[modality]
    values = {
        "name": "planted",
        "model": {
            "dimension": 8,
            "encoders": {modality: encoder},
            "item_id": settings.pop("item_id", None),
            "fusion": settings.pop("fusion", {"kind": "gated"}),
        },
        "loss": {"kind": "in_batch_softmax", "temperature": 1.0},
        "train": {
            "epochs": 6,
            "micro_batch_size": 32,
            "num_micro_batches": 2,
            "metric": "ndcg@5",
            "optimizer": {"learning_rate": 0.01, "table_learning_rate": 0.1},
            **settings,
        },
    }
    run = make_run(values, "test")
    random = np.random.default_rng(5)
    contents = [draw(item % NUM_GROUPS, random) for item in range(data.num_items)]
    if shuffled:
        contents = [contents[place] for place in random.permutation(data.num_items)]
    config = run.model.encoders[modality]
    warm = [contents[item] for item in np.flatnonzero(data.train_count_N)]
    model = assemble_model(run.model, data, {modality: config.learn(warm)}, run.seed, pretrained=False)
    items = PreparedItems({item: {modality: model.encoders[modality].prepare(content)} for item, content in enumerate(contents)})  # type: ignore[operator]
    plan = make_plan(run.train, data, run.seed)
    maker = BatchMaker.create(data, plan, history_length=0, attribute_columns=(), whole_catalogue=False)
    return Training(
        engine=TorchEngine(model, run.train.optimizer, {modality: None}, run.train.num_micro_batches),
        stream=MemoryStream(maker, dict(model.encoders.items()), items),  # type: ignore[arg-type]
        plan=plan,
        loss=run.loss,
        config=run.train,
        evaluate=run.evaluate,
        questions=make_questions(data, "valid", run.evaluate),
        train_count_N=torch.from_numpy(data.train_count_N),
        seat=Seat(0, 1),
        checkpoints=CheckpointWriter(str(folder), "feedc0ffee123456", {}, keep=run.train.keep_checkpoints, seat=Seat(0, 1)) if folder else None,
        log=None,
    )


def cold_ndcg(training: Training, data: PreparedData) -> float:
    """NDCG@5 among the cold items after training: 1 when each user's five stand on top, a quarter or so by chance."""
    from medley.training.loop import validate

    train(training, Progress())
    scorer, _ = validate(training)
    return cold_ndcg_of(scorer, training.questions, data)


def cold_ndcg_of(scorer: Scorer, questions: Questions, data: PreparedData) -> float:
    ranker, cold = VectorRanker.of(scorer, questions, EvaluateConfig()), {"cold": np.flatnonzero(data.train_count_N == 0)}
    return float(summarise(rank_users(ranker, questions, cold, 5)["cold"].metrics((5,)))["ndcg@5"] or 0.0)


@pytest.mark.parametrize("modality", list(MODALITIES))
def test_a_pattern_in_the_content_is_found_on_items_that_training_never_saw(planted: PreparedData, modality: str) -> None:
    questions = make_questions(planted, "valid", EvaluateConfig())
    popular = cold_ndcg_of(popularity_scorer(planted), questions, planted)
    found = cold_ndcg(training_of(planted, modality), planted)
    shuffled = cold_ndcg(training_of(planted, modality, shuffled=True), planted)
    print(f"{modality}: found {found:.3f}, shuffled {shuffled:.3f}, popularity {popular:.3f}")
    # All cold items are equally unpopular: 0 1 2 3 … by number, so each user meets one or two of their five.
    assert popular == pytest.approx(0.25, abs=0.1)
    assert found > 0.9
    assert shuffled < 0.5


def losses_of(progress: Progress) -> list[float]:
    return [loss for epoch in progress.history for loss in epoch["step_losses"]]


DROPOUTS = {"item_id": {"dropout": 0.5}, "fusion": {"kind": "gated", "modality_dropout": 0.3}, "epochs": 2}


def test_losses_follow_from_the_plan_whatever_else_was_drawn(planted: PreparedData) -> None:
    first = losses_of(train(training_of(planted, "text", **DROPOUTS), Progress()))
    training, progress = training_of(planted, "text", **DROPOUTS), Progress()
    for seed in (999, 7):
        torch.manual_seed(seed)
        torch.rand(17)
        train_epoch(training, progress)
    again = losses_of(progress)
    assert len(first) == 2 * 7  # 400 rows, 64 a step
    assert again == first


def test_the_order_of_the_micro_batches_does_not_change_their_draws(planted: PreparedData) -> None:
    def first_loss(order: Sequence[int]) -> float:
        training = training_of(planted, "text", **DROPOUTS)
        (batches,) = first_batches(training, order)
        return train_step(training, batches, 0).sum().item()

    def first_batches(training: Training, order: Sequence[int]) -> Iterator[list[Batch]]:
        yield next(iter(training.stream.global_batches(0, 0, order)))

    assert first_loss([1, 0]) == pytest.approx(first_loss([0, 1]), rel=1e-6)


def test_training_stops_after_patience_epochs_without_a_better_metric(planted: PreparedData, tmp_path: Path) -> None:
    # With a rate this small nothing moves: the first epoch stays the best.
    rates = {"learning_rate": 1e-20, "table_learning_rate": 1e-20}
    progress = train(training_of(planted, "text", tmp_path, epochs=10, patience=2, optimizer=rates, keep_checkpoints=1), Progress())
    assert [epoch["valid"]["ndcg@5"] for epoch in progress.history] == [progress.best_metric] * 3
    assert (progress.best_epoch, progress.best_checkpoint) == (0, "step-00000007")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000007", "step-00000021"]


def test_a_run_goes_on_from_a_checkpoint_within_an_epoch_bit_by_bit(planted: PreparedData, tmp_path: Path) -> None:
    settings = {**DROPOUTS, "checkpoint_every_steps": 3, "keep_checkpoints": 9}
    whole = train(training_of(planted, "text", tmp_path, **settings), Progress())
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:08d}" for step in (3, 6, 7, 9, 12, 14)]
    checkpoint = read_checkpoint(str(tmp_path), "step-00000009")
    assert (checkpoint.progress.epoch, checkpoint.progress.global_batch) == (1, 2)
    assert checkpoint.progress.step_losses == whole.history[1]["step_losses"][:2]
    assert read_checkpoint(str(tmp_path), "step-00000014").progress.step_losses == []
    training = training_of(planted, "text", **settings)
    load_weights(training.engine.model, checkpoint.state)
    training.engine.restore(checkpoint.state, prime=None)
    resumed = train(training, checkpoint.progress)
    for field in ("epoch", "first_step", "step_losses", "loss", "valid"):
        assert [epoch[field] for epoch in resumed.history] == [epoch[field] for epoch in whole.history]


def test_an_epoch_resumed_twice_keeps_the_losses_of_all_its_parts(planted: PreparedData, tmp_path: Path) -> None:
    settings = {**DROPOUTS, "checkpoint_every_steps": 2, "keep_checkpoints": 9, "epochs": 1}
    whole = train(training_of(planted, "text", tmp_path, **settings), Progress())
    for step in (2, 4):  # the second resume starts from what the first one wrote
        checkpoint = read_checkpoint(str(tmp_path), f"step-{step:08d}")
        training = training_of(planted, "text", tmp_path, **settings)
        load_weights(training.engine.model, checkpoint.state)
        training.engine.restore(checkpoint.state, prime=None)
        resumed = train(training, checkpoint.progress)
        assert resumed.history[0]["step_losses"] == whole.history[0]["step_losses"]


@pytest.mark.parametrize("metric", ["ndcg", "ndcg@0", "auc@10", "ndcg@ten"])
def test_a_metric_that_does_not_exist_is_refused_at_the_door(planted: PreparedData, metric: str) -> None:
    with pytest.raises(ValueError, match=r"'train.metric' is '.*string should match pattern"):
        training_of(planted, "text", metric=metric)


def test_a_loss_that_is_not_finite_is_named_with_its_batch_and_no_checkpoint_is_made_of_it(planted: PreparedData, tmp_path: Path) -> None:
    training = training_of(planted, "text", tmp_path, checkpoint_every_steps=2, keep_checkpoints=9, epochs=1)
    broken = training.stream.maker.batch

    def batch_with_a_bad_weight(place: tuple[int, int, int], *rest: Any) -> Batch:
        made = broken(place, *rest)
        return replace(made, row_weight_B=torch.full_like(made.row_weight_B, torch.nan)) if place == (0, 4, 1) else made

    object.__setattr__(training.stream.maker, "batch", batch_with_a_bad_weight)
    with pytest.raises(LossNotFiniteError, match=r"the loss of epoch 0, global batch 4, micro-batch 1 is nan; expected a finite number; lower"):
        train(training, Progress())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000004"]
