"""python -m tests.bench.daily [--quick]: days of a growing data set, each day's run going on from yesterday's weights beside one from nothing.

The synthetic data are cut by time: day 1 is the first half of the interactions, days 2 to 5 are a tenth each, and every day is ranked on the day
after it. New items appear on day 5, and a tenth of the users arrive on days 2 to 5. Both runs of a day read the same prepared set, which extends
yesterday's (`data.base`). Figures: of days 2 to 5 the median of NDCG@10 and of seconds, as shares of the run from nothing.
"""

import argparse
import json
import os
import statistics
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.evaluate import evaluate
from jobs.prepare import prepare_run
from medley.manifest import join_uri, read_parquet, write_parquet

NUM_DAYS = 5
DAY_ENDS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""of days 1 to 6, shares of the interactions in time order"""
VALID_SHARE = 0.05
"""last part of the days up to today, which chooses the best epoch"""
LATE_USER_SHARE = 0.1
EPOCHS, DAILY_EPOCHS = 6, 1
SYNTHETIC = {"num_items": 2000, "num_users": 800, "interactions_per_user": 220, "image_side_pixels": 16, "clip_seconds": 0.1}
QUICK = {"num_items": 300, "num_users": 100, "interactions_per_user": 40, "image_side_pixels": 16, "clip_seconds": 0.1}


def main() -> None:
    """Five days, two runs each; one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.daily", description="Daily continuation beside training from nothing.")
    parser.add_argument("--quick", action="store_true", help="small data: only shows that it runs")
    quick = parser.parse_args().quick

    from medley.cluster.session import ray_session
    from medley.data.convert import convert
    from medley.data.convert.synthetic import SyntheticConfig

    with tempfile.TemporaryDirectory() as storage, ray_session():
        whole = join_uri(storage, "whole")
        convert(SyntheticConfig(**(QUICK if quick else SYNTHETIC)), whole)
        days: list[dict[str, Any]] = []
        base = yesterday = None
        for day in range(1, NUM_DAYS + 1):
            tables = join_uri(storage, "days", str(day))
            write_day(whole, tables, day)
            base = prepare_run(make_day_run(storage, tables, base, f"prepare-{day}", EPOCHS, None))["prepared"]
            scratch = measure(make_day_run(storage, tables, None, f"scratch-{day}", EPOCHS, None, prepared=base))
            daily = scratch
            if yesterday is not None:
                daily = measure(make_day_run(storage, tables, None, f"daily-{day}", DAILY_EPOCHS, yesterday, prepared=base))
            yesterday = daily["run"]
            days.append({"scratch": scratch, "daily": daily})
    later = days[1:]
    ndcg, seconds = ([entry["daily"][key] / entry["scratch"][key] for entry in later] for key in ("ndcg@10", "seconds"))
    figures = {"ndcg_vs_scratch": statistics.median(ndcg), "time_vs_scratch": statistics.median(seconds)}
    quartiles = {name: np.quantile(ratios, [0.25, 0.5, 0.75]).tolist() for name, ratios in (("ndcg_vs_scratch", ndcg), ("time_vs_scratch", seconds))}
    settings = {"epochs": EPOCHS, "daily_epochs": DAILY_EPOCHS, "num_cpus": os.cpu_count()}
    print(json.dumps({"bench": "daily", "figures": figures, "detail": {"quartiles": quartiles, "days": days, **settings}}))


def write_day(whole: str, uri: str, day: int) -> None:
    """Tables as they stand on the evening of the day after `day`, whose rows are the test split; items that nobody took yet are not known yet."""
    interactions = read_parquet(join_uri(whole, "interactions")).sort_by("timestamp")
    ends = [int(share * interactions.num_rows) for share in DAY_ENDS]
    today, tomorrow = ends[day - 1], ends[day]
    order = np.arange(interactions.num_rows)
    part = np.where(order >= today, "test", np.where(order >= int(today * (1 - VALID_SHARE)), "valid", "train"))
    day_of_row = np.searchsorted(ends, order, side="right") + 1
    user = pc.cast(pc.replace_substring(interactions["user_id"], "user-", ""), pa.int32()).to_numpy()
    arrival = np.where(user >= (1 - LATE_USER_SHARE) * (user.max() + 1), 2 + user % (NUM_DAYS - 1), 1)
    kept = interactions.append_column("split", pa.array(part)).filter(pa.array((order < tomorrow) & (day_of_row >= arrival)))
    write_parquet(join_uri(uri, "interactions", "part-00000.parquet"), kept)
    items = read_parquet(join_uri(whole, "items"), columns=["item_id", "title", "text"])
    write_parquet(join_uri(uri, "items", "part-00000.parquet"), items.filter(pc.is_in(items["item_id"], value_set=pc.unique(kept["item_id"]))))


def make_day_run(storage: str, tables: str, base: str | None, name: str, epochs: int, start_from: str | None, prepared: str | None = None) -> Any:
    """The run of one day: words and free vectors, matrix factorisation."""
    from medley.config import make_run

    values = {
        "storage": storage,
        "name": name,
        "inputs": {"tables": tables, "prepared": prepared},
        "data": {"split": {"kind": "shipped"}, "base": base},
        "model": {"dimension": 32, "encoders": {"text": {"kind": "subword", "vocabulary_size": 4000, "dimension": 64}}, "item_id": {"dropout": 0.1}},
        "loss": {"kind": "in_batch_softmax", "temperature": 1.0},
        "train": {
            "epochs": epochs,
            "start_from": start_from,
            "micro_batch_size": 512,
            "num_micro_batches": 2,
            "workers": 2,
            "optimizer": {"learning_rate": 0.005, "table_learning_rate": 0.025, "weight_decay": 0.2, "table_weight_decay": 0.16},
        },
        "evaluate": {"splits": ["test"]},
    }
    return make_run(values, "bench")


def measure(run: Any) -> dict[str, Any]:
    """Train and rank the next day."""
    from medley.training.run import fit

    result = fit(run)
    return {"run": result["run"], "seconds": result["seconds"], "ndcg@10": evaluate(run)["test"]["model"]["all"]["ndcg@10"]}


if __name__ == "__main__":
    main()
