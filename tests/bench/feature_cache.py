"""python -m tests.bench.feature_cache [--quick]: an epoch on cached vectors beside one with the frozen encoders in the loop.

MovieLens-1M (`../shared/data/ml1m`): plots through MiniLM (6 layers of 384), posters of 128 × 128 pixels through EfficientNet-lite0, both frozen
and pretrained; gated fusion, free vectors, MF. One rank of one thread in this process, the real loop's step and streams, plain AdamW, micro-batches
of 512. Arms take turns, round by round:

- cached: a whole epoch (validation left out, as in the others); its streams read the feature cache that jobs.encode's code has filled before
- in the loop: `LOOP_STEPS` steps; its epoch is its seconds a step times the steps of an epoch. The step before the first round is not timed
- head only, the limit: the cached arm's step on batches that lie ready in memory

Figure: cache_speedup, the median over rounds of the epoch in the loop over the cached one. Detail: `bit_equal`: whether the losses of all steps in
the loop are those of the cached arm's first steps; `cached_of_head_only`: the share of the limit's speed; seconds of the encoding (two tasks).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.figures import machine, quartiles
from tests.pretrained import convert_efficientnet_lite0, minilm_folder

RAW = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "ml1m"
SIDE_PIXELS, MAX_TOKENS, MICRO_BATCH_SIZE = 128, 64, 512
QUICK_SIDE_PIXELS, QUICK_MAX_TOKENS = 32, 16
NUM_ROUNDS, QUICK_ROUNDS = 5, 1
LOOP_STEPS = 2
HEAD_BATCHES = 100


def configuration(storage: str, lite0: str, *, quick: bool) -> dict[str, Any]:
    """The run as plain values."""
    side_pixels, max_tokens = (QUICK_SIDE_PIXELS, QUICK_MAX_TOKENS) if quick else (SIDE_PIXELS, MAX_TOKENS)
    frozen = {"train": "frozen", "cache": True}
    text = {"kind": "transformer_text", "path": minilm_folder(), "max_tokens": max_tokens, **frozen}
    image = {"kind": "timm", "architecture": "tf_efficientnet_lite0", "weights": lite0, "side_pixels": side_pixels, **frozen}
    return {
        "storage": storage,
        "name": "feature-cache-bench",
        "convert": {"kind": "movielens", "raw": str(RAW)},
        "data": {"split": {"kind": "shipped"}, "media": {"image_max_side_pixels": side_pixels}},
        "model": {"dimension": 64, "encoders": {"text": text, "image": image}, "fusion": {"kind": "gated"}},
        "train": {"micro_batch_size": MICRO_BATCH_SIZE, "num_micro_batches": 1, "workers": 2},
        "evaluate": {"splits": ["valid"]},
    }


class Arm:
    """One way to train: its own model, from the same first weights, and its stream."""

    def __init__(self, run: Any, data: Any, assets: Any, vectors: Any):
        import torch

        from medley.training.assemble import assemble_model, assemble_stream, make_plan
        from medley.training.engine import TorchEngine
        from medley.training.evaluate import make_questions
        from medley.training.loop import Training
        from medley.training.seat import Seat

        model = assemble_model(run.model, data, assets, run.seed, pretrained=True, vectors=vectors)
        plan = make_plan(run.train, data, run.seed)
        self.training = Training(
            engine=TorchEngine(model, run.train.optimizer, dict.fromkeys(run.model.encoders), 1),
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
        self.losses: list[float] = []
        self.num_steps = 0

    def batches(self, epoch: int) -> Iterator[Any]:
        """The epoch's batches."""
        return self.training.stream.global_batches(epoch, 0, [0])

    def train(self, batches: Iterator[Any], num_steps: int) -> float:
        """Seconds of so many steps."""
        from medley.training.loop import train_step

        started, losses = time.perf_counter(), []
        for _ in range(num_steps):
            losses.append(train_step(self.training, next(batches), self.num_steps))
            self.num_steps += 1
        self.losses += [float(loss) for loss in losses]
        return time.perf_counter() - started


def measure(run: Any, data: Any, assets: Any, vectors: Any, num_rounds: int) -> tuple[list[dict[str, float]], bool]:
    """Seconds of an epoch per arm for each round, and whether the losses agree to the bit."""
    in_loop, cached, head = Arm(run, data, assets, None), Arm(run, data, assets, vectors), Arm(run, data, assets, vectors)
    steps_per_epoch = in_loop.training.plan.num_global_batches
    loop_batches = in_loop.batches(0)
    in_loop.train(loop_batches, 1)
    ready = [batches for batches, _ in zip(head.batches(0), range(HEAD_BATCHES), strict=False)]
    rounds = []
    for number in range(num_rounds):
        seconds = {
            "in_loop": in_loop.train(loop_batches, LOOP_STEPS) / LOOP_STEPS * steps_per_epoch,
            "cached": cached.train(cached.batches(number), steps_per_epoch),
            "head_only": head.train(iter(ready), len(ready)) / len(ready) * steps_per_epoch,
        }
        rounds.append(seconds)
        print(f"round {number + 1} of {num_rounds} | epoch: {', '.join(f'{arm} {value:.1f} s' for arm, value in seconds.items())}", file=sys.stderr)
    for arm in (in_loop, cached, head):
        arm.training.stream.close()
    return rounds, in_loop.losses == cached.losses[: len(in_loop.losses)]


def main() -> None:
    """Convert, prepare, encode, run the rounds, print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.feature_cache", description="An epoch on cached vectors beside one with the encoders.")
    parser.add_argument("--quick", action="store_true", help="small pictures, short texts, one round: only shows that it runs")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as storage:
        lite0 = convert_efficientnet_lite0(Path(storage, "efficientnet_lite0.safetensors"))
        if not RAW.is_dir() or lite0 is None or minilm_folder() is None:
            print(f"skipped: needs {RAW} and the packages that tests/pretrained.py names", file=sys.stderr)
            print(json.dumps({"bench": "feature_cache", "figures": {}, "detail": {"skipped": True}}))
            return
        import torch

        from jobs.encode import encode_run
        from jobs.prepare import prepare_run
        from medley.cluster.session import ray_session
        from medley.config import make_run
        from medley.data.convert import convert
        from medley.training.assemble import learn_assets
        from medley.training.features import read_vectors
        from medley.training.run import feature_cache, find_prepared

        run = make_run(configuration(storage, str(lite0), quick=quick), "bench")
        torch.set_num_threads(1)
        with ray_session():
            assert run.convert is not None
            convert(run.convert, run.tables_uri)
            prepare_run(run)
            started = time.perf_counter()
            encoded = encode_run(run)
            encode_seconds = time.perf_counter() - started
        data = find_prepared(run)
        assets = learn_assets(run.model.encoders, data)
        vectors = read_vectors(feature_cache(run).find(data, assets), run.model.encoders, data)
        rounds, bit_equal = measure(run, data, assets, vectors, QUICK_ROUNDS if quick else NUM_ROUNDS)
        num_rows = len(data.train)
    speedups = quartiles([each["in_loop"] / each["cached"] for each in rounds])
    detail = {
        "bit_equal": bit_equal,
        "quartiles": {"cache_speedup": speedups, "cached_of_head_only": quartiles([each["head_only"] / each["cached"] for each in rounds])},
        "epoch_seconds_quartiles": {arm: quartiles([each[arm] for each in rounds]) for arm in rounds[0]},
        "scaled": f"the epoch in the loop from {LOOP_STEPS} steps a round, the head's from {HEAD_BATCHES}",
        "encode_seconds": round(encode_seconds, 1),
        "contents": {name: result["num_computed"] for name, result in encoded.items()},
        "workload": {"rows": num_rows, "micro_batch_size": run.train.micro_batch_size, "side_pixels": run.model.encoders["image"].side_pixels},
        "machine": machine(),
    }
    print(json.dumps({"bench": "feature_cache", "figures": {"cache_speedup": speedups[1]}, "detail": detail}))


if __name__ == "__main__":
    main()
