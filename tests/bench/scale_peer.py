"""The peer of the scale bench: what `prepare` does, as one polars script; runs in the environment of peers/polars.txt.

python -m tests.bench.scale_peer TABLES OUT WARM_UP_TABLES
"""

import hashlib
import json
import resource
import sys
import time
from pathlib import Path

import polars as pl

LATEST = 4_102_444_800_000_000


def prepare(tables: Path, out: Path) -> int:
    """Validate, number, de-duplicate, split by time, prove the splits apart, write; returns the rows written. Settings are those of `prepare`'s defaults."""
    out.mkdir(parents=True)
    identity = {str(path): file_hash(path) for path in sorted(tables.rglob("*.parquet"))}

    def is_good(column: str) -> pl.Expr:
        id_ = pl.col(column)
        return id_.is_not_null() & id_.str.len_bytes().is_between(1, 1024) & ~id_.str.contains("\0", literal=True)

    items = pl.read_parquet(tables / "items" / "*.parquet").filter(is_good("item_id"))
    items = items.unique("item_id", keep="first", maintain_order=True).with_row_index("item_index")
    items = items.with_columns(pl.when(pl.col("text").str.strip_chars() != "").then(pl.col("text")))
    is_finite = pl.col("vector").arr.eval(pl.element().is_finite()).arr.all()
    items = items.with_columns(pl.when(is_finite).then(pl.col("vector")))

    rows = pl.scan_parquet(tables / "interactions" / "*.parquet").with_row_index("row")
    times = pl.col("timestamp").dt.epoch("us")
    rows = rows.filter(is_good("user_id") & is_good("item_id") & (times > 0) & (times < LATEST) & pl.col("value").is_finite().fill_null(True))
    found = rows.join(items.lazy().select("item_id", "item_index"), on="item_id").select("user_id", "item_index", "timestamp", "value", "row").collect()
    found = found.sort("row").unique(["user_id", "item_index", "timestamp", "value"], keep="first", maintain_order=True)
    found = found.unique(["user_id", "item_index", "timestamp"], keep="last", maintain_order=True)

    in_order = found["timestamp"].sort()
    valid_from, test_from = in_order[int(0.8 * len(found))], in_order[int(0.9 * len(found))]
    users = found.select(pl.col("user_id").unique()).with_row_index("user_index")
    part = (pl.col("timestamp") >= valid_from).cast(pl.Int8) + (pl.col("timestamp") >= test_from).cast(pl.Int8)
    found = found.join(users, on="user_id").with_columns(part.alias("part"))
    assert found.select(pl.struct("user_index", "item_index", "timestamp").n_unique()).item() == len(found), "a row stands in two splits"
    bounds = found.group_by("part").agg(pl.col("timestamp").min().alias("first"), pl.col("timestamp").max().alias("last")).sort("part")
    assert (bounds["last"][:-1] < bounds["first"][1:]).all()

    train = found.filter(pl.col("part") == 0)
    statistics = {"mean": train["value"].mean(), "deviation": train["value"].std(ddof=0), "inputs": identity}
    counts = train.group_by("item_index").len("train_count")
    facts = items.select("item_index", "item_id", "title").join(counts, on="item_index", how="left", maintain_order="left")
    facts.with_columns(pl.col("train_count").fill_null(0)).write_parquet(out / "item_facts.parquet", compression="snappy")
    items.write_ipc(out / "items.arrow")
    users.write_parquet(out / "users.parquet", compression="snappy")
    constants = [pl.lit(1.0, pl.Float32).alias("weight"), pl.lit(True).alias("is_target")]
    for number, name in enumerate(("train", "valid", "test")):
        split = found.filter(pl.col("part") == number).sort("timestamp", "user_index", "item_index")
        columns = [pl.col("user_index").cast(pl.Int32), pl.col("item_index").cast(pl.Int32), "timestamp", "value", *constants]
        split.select(columns).write_parquet(out / f"{name}.parquet", compression="snappy")
    files = {path.name: file_hash(path) for path in sorted(out.iterdir())}
    (out / "manifest.json").write_text(json.dumps({"files": files, **statistics}))
    return len(found)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Warm up, prepare, print seconds and rows as JSON."""
    tables, out, warm_up = map(Path, sys.argv[1:])
    prepare(warm_up, out / "warm-up")
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    num_rows = prepare(tables, out / "prepared")
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "rows": num_rows, "peak_bytes": after.ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
