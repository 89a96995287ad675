"""Training from the feature cache: the same losses, to the bit, as with the frozen encoder in the loop."""

from typing import Any

import pytest
import torch

from jobs.encode import encode_run
from medley.config import Run, override_run
from medley.data.memory import MemoryStream
from medley.data.prepared import PreparedData
from medley.data.stream import BatchStream
from medley.manifest import read_json
from medley.model import build_model
from medley.schema import InputError
from medley.training.assemble import assemble_model, assemble_stream, learn_assets, make_plan
from medley.training.checkpoint import Progress
from medley.training.engine import TorchEngine
from medley.training.evaluate import make_questions
from medley.training.features import read_vectors
from medley.training.loop import Training, train_epoch
from medley.training.run import feature_cache, fit, read_assets_of
from medley.training.seat import Seat
from medley.training.start import read_weights_of
from tests.training.conftest import TinyRun

IMAGE_CACHED = {"model.encoders.image.cache": True}
BOTH_CACHED = {**IMAGE_CACHED, "model.encoders.text.train": "frozen", "model.encoders.text.cache": True}


def epoch_of(run: Run, data: PreparedData, *, is_cached: bool) -> tuple[dict[str, Any], Training]:
    """The record of one epoch in this process, with the run's cached encoders read or in the loop."""
    assets = learn_assets(run.model.encoders, data)
    vectors = read_vectors(feature_cache(run).find(data, assets), run.model.encoders, data) if is_cached else None
    model = assemble_model(run.model, data, assets, run.seed, pretrained=True, vectors=vectors)
    plan = make_plan(run.train, data, run.seed)
    training = Training(
        engine=TorchEngine(model, run.train.optimizer, {"text": None, "image": None}, run.train.num_micro_batches),
        stream=assemble_stream(model, run.model, run.loss, data, plan, run.stream, vectors),
        plan=plan,
        loss=run.loss,
        config=run.train,
        evaluate=run.evaluate,
        questions=make_questions(data, "valid", run.evaluate),
        train_count_N=torch.from_numpy(data.train_count_N),
        seat=Seat(0, 1),
        checkpoints=None,
        log=None,
    )
    progress = Progress()
    train_epoch(training, progress)
    training.stream.close()
    return progress.history[0], training


@pytest.mark.parametrize("changes", [IMAGE_CACHED, BOTH_CACHED], ids=["one encoder trained", "all cached"])
def test_losses_and_metrics_with_the_cache_are_those_with_the_encoder_in_the_loop(
    ray_session: None, tiny_run: TinyRun, tiny_prepared: str, changes: dict[str, Any]
):
    run, data = override_run(tiny_run("in-process"), changes), PreparedData.open(tiny_prepared)
    encode_run(run)
    in_loop, trained = epoch_of(run, data, is_cached=False)
    cached, light = epoch_of(run, data, is_cached=True)
    assert (type(trained.stream), type(light.stream)) == (BatchStream, MemoryStream)
    assert cached["step_losses"] == in_loop["step_losses"]
    assert cached["valid"] == in_loop["valid"]
    own = {name: value for name, value in trained.engine.model.state_dict().items() if name in light.engine.model.state_dict()}
    assert own.keys() == light.engine.model.state_dict().keys()
    assert all(torch.equal(value, light.engine.model.state_dict()[name]) for name, value in own.items())


def test_a_cached_run_trains_as_the_one_with_the_encoder_in_its_workers_and_keeps_the_encoder(finished_run: tuple[Run, dict[str, Any]]):
    base, _ = finished_run
    run = override_run(base, {**IMAGE_CACHED, "name": "cached"})
    encode_run(run)
    fit(run)
    cached, in_loop = read_json(f"{run.run_uri}/history.json"), read_json(f"{base.run_uri}/history.json")
    assert [epoch["step_losses"] for epoch in cached] == [epoch["step_losses"] for epoch in in_loop]
    assert [epoch["valid"] for epoch in cached] == [epoch["valid"] for epoch in in_loop]
    weights, expected = read_weights_of(run.run_uri), read_weights_of(base.run_uri)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    # What serving does with it: the whole model, the cached encoder too, from the folder's own files.
    whole = build_model(
        run.model,
        read_assets_of(run.run_uri),
        train_count_N=weights["train_count_N"],
        user_train_count_V=torch.ones(len(weights["users.embedding.weight"]), dtype=torch.int64),
        num_categories={},
        mean_value=0.0,
        pretrained=False,
    )
    assert {name for name in whole.state_dict() if name.startswith("encoders.image.")} <= weights.keys()


def test_a_run_whose_vectors_were_never_made_is_refused_before_workers_start(ray_session: None, tiny_run: TinyRun):
    run = override_run(tiny_run("never-encoded", epochs=1), {"model.encoders.image.cache": True, "model.encoders.image.side_pixels": 17})
    with pytest.raises(InputError, match=r"has no vectors of encoder 'image' for this prepared data; .*; run jobs\.encode with this configuration"):
        fit(run)


def test_encode_wants_a_frozen_encoder(ray_session: None, tiny_run: TinyRun):
    run = tiny_run("wrong")
    with pytest.raises(InputError, match=r"no encoder has cache: true; expected a frozen encoder \(image\)"):
        encode_run(run)
    with pytest.raises(InputError, match="encoder 'text' is trained"):
        encode_run(run, "text")
    with pytest.raises(InputError, match="there is no encoder 'sound'"):
        encode_run(run, "sound")


def test_a_named_frozen_encoder_is_encoded_without_cache(ray_session: None, tiny_run: TinyRun):
    assert set(encode_run(tiny_run("named"), "image")) == {"image"}


@pytest.mark.long
def test_ranks_that_call_a_frozen_encoder_differently_often_do_not_wait_for_each_other_at_stage_3(ray_session: None, tiny_run: TinyRun):
    # 20 rows name 14 to 20 items: about 16 pictures, which are one call of the encoder or two.
    holding = {"micro_batch_size": 20, "num_micro_batches": 2, "epochs": 1, "engine": {"zero_stage": 3}}
    in_loop = tiny_run("stage-3-in-loop", **holding)
    cached = override_run(tiny_run("stage-3-cached", **holding), IMAGE_CACHED)
    encode_run(cached)
    fit(in_loop)
    fit(cached)
    losses = [read_json(f"{run.run_uri}/history.json")[0]["step_losses"] for run in (in_loop, cached)]
    assert losses[0] == losses[1]
