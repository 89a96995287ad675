"""python -m tests.bench.large_encoder [--quick]: a large text encoder under ZeRO-3, from its safetensors shards to a resumed checkpoint.

A BERT of 310 million parameters (22 layers of 1024, random weights), saved once in shards of 200 MB; two ranks over gloo in processes of their own,
one thread each, our `RecommenderModel` and `DeepSpeedEngine`. Needs 10 GB of memory and 6 GB of disk. Linux only.

- load at ZeRO-3 and, beside it, at ZeRO-0, in float32, ROUNDS times each by turns, new processes each time. Peak: resident memory at most, above the
  same process before the model is built, with all libraries loaded and the group up, until every weight was looked at once
- train, at ZeRO-3 in bf16: load, one step, a checkpoint, one more step
- resume: new processes, the checkpoint, the same step again

Figure: zero3_load_peak_ratio, the larger rank's peak while loading over the model's float32 bytes; it does not cover training: `step_peak_ratio` in
detail does, over the same bytes. Detail also has ZeRO-0's ratio and how far the resumed step's loss is from the unbroken one's.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.figures import machine, quartiles

LARGE = {"hidden_size": 1024, "num_hidden_layers": 22, "num_attention_heads": 16, "intermediate_size": 4096, "vocab_size": 30522}
SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024, "vocab_size": 30522}
ROUNDS, QUICK_ROUNDS = 5, 1


def run(folder: Path, sizes: dict[str, int], num_rounds: int) -> dict[str, Any]:
    """The model's folder, the rounds, training and resuming."""

    from tests.bench import large_encoder_rank as rank_side
    from tests.training.two_ranks import two_ranks

    tiny, large, checkpoint = (folder / name for name in ("tiny", "large", "checkpoint"))
    checkpoint.mkdir()
    with two_ranks() as call:  # in processes that end, with their memory
        call(save, str(tiny), {}, str(large), sizes)
    model_bytes = 4 * num_elements(large)
    rounds = []
    for number in range(num_rounds):
        peaks: dict[str, Any] = {}
        for stage in (3, 0):
            with two_ranks() as call:
                peaks[f"zero{stage}"] = call(rank_side.load, str(tiny), str(large), stage)
        rounds.append(peaks)
        print(f"round {number + 1} of {num_rounds} | {peaks}", file=sys.stderr)
    with two_ranks() as call:
        trained = call(rank_side.train, str(large), str(checkpoint), "bf16")
    with two_ranks() as call:
        resumed = call(rank_side.resume, str(large), str(checkpoint), "bf16")
    unbroken, again = sum(rank["losses"][1] for rank in trained), sum(losses[0] for losses in resumed)
    ratios = {stage: quartiles([max(rank["peak_bytes"] for rank in peaks[stage]) / model_bytes for peaks in rounds], 4) for stage in ("zero3", "zero0")}
    detail = {
        "load_peak_ratio_quartiles": ratios,
        "step_peak_ratio": round(max(rank["step_peak_bytes"] for rank in trained) / model_bytes, 3),
        "held_elements_of_all": [round(rank["held_elements"] * 4 / model_bytes, 3) for rank in rounds[0]["zero3"]],
        "losses": {"first": sum(rank["losses"][0] for rank in trained), "second": unbroken, "second_resumed": again},
        "model": {"parameters": model_bytes // 4, **sizes},
        "machine": machine(),
    }
    return {"bench": "large_encoder", "figures": {"zero3_load_peak_ratio": ratios["zero3"][1]}, "detail": detail}


def save(rank: int, tiny: str, tiny_sizes: dict[str, int], large: str, sizes: dict[str, int]) -> None:
    """Write both folders (rank 0)."""
    from tests.training.tiny_text import write_bert

    if rank == 0:
        write_bert(Path(tiny), **tiny_sizes)
        write_bert(Path(large), max_shard_size="200MB", **sizes)


def num_elements(folder: Path) -> int:
    """Of all weights of a folder."""
    from medley.encoders.own_ranges import stored_tensors

    return sum(tensor.num_elements for tensor in stored_tensors(str(folder)).values())


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.large_encoder", description="A large text encoder under ZeRO-3: memory, step, resume.")
    parser.add_argument("--quick", action="store_true", help="a model of 11 million parameters, one round: only shows that it runs")
    quick = parser.parse_args().quick
    if not Path("/proc/self/clear_refs").exists():
        print("skipped: peaks of memory are read from Linux's /proc", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(Path(folder), SMALL if quick else LARGE, QUICK_ROUNDS if quick else ROUNDS)))


if __name__ == "__main__":
    main()
