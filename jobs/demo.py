"""python -m jobs.demo CONFIG.yaml: the whole road once: pipeline, an id-only baseline, one comparison, a server that answers a few users."""

import sys
import time
from typing import Any

from jobs.entry import run_entry, run_session, verb_parser

NUM_USERS = 3


def main() -> dict[str, Any]:
    """Run every stage, print what came out, return the figures."""
    arguments = verb_parser("demo", "The whole road on synthetic data: search, train, compare, serve, ask.").parse_args()

    from jobs.evaluate import evaluate
    from jobs.pipeline import run_pipeline
    from medley.config import load_run, override_run
    from medley.serving.client import MedleyClient
    from medley.serving.deployments import ServeArgs, serve_locally
    from medley.training.evaluate import format_table
    from medley.training.run import fit

    started = time.monotonic()
    run = load_run(arguments.config, arguments.overrides)
    id_only = override_run(run, {"name": f"{run.name}-id-only", "model.encoders": {}})
    with run_session(run, arguments.address):
        stages = run_pipeline(run)
        fit(id_only)
        table = dict(stages["evaluate"]["test"])
        table = {"medley": table["model"], "id-only MF": evaluate(id_only)["test"]["model"], "popularity": table["popularity"], "oracle": table["oracle"]}
        bundle = stages["bundle"]["bundle"]
        with serve_locally(ServeArgs(bundle=bundle)) as url, MedleyClient(url, timeout_seconds=30) as client:
            users = known_users(bundle, NUM_USERS)
            answers = {user: client.recommend(user, k=5) for user in users}
    lines = [
        format_table(table, "ndcg@10"),
        "(test split, NDCG@10; id-only MF has no vector for cold items)",
        f"\ntraining: {stages['train']['rows_per_second']:,} rows/s, {stages['train']['steps_per_second']} steps/s, peak {stages['train']['peak_memory_megabytes']} MB per worker",
        f"\ntop five of {users[0]}:",
        *(f"  {item.score:7.3f}  {item.item_id}  {item.title}" for item in answers[users[0]].items),
        f"\n{len(answers)} users asked over HTTP; the server is stopped. Start it again with:",
        f"  serve run serve.app:app bundle={bundle}",
        f"\n{time.monotonic() - started:.0f} s in all",
    ]
    print("\n".join(lines), file=sys.stderr)
    metrics = {name: {group: values["ndcg@10"] for group, values in groups.items()} for name, groups in table.items()}
    return {"bundle": bundle, "ndcg@10": metrics, "seconds": round(time.monotonic() - started, 1)}


def known_users(bundle_uri: str, count: int) -> list[str]:
    """The first users of a bundle."""
    from medley.bundle import read_bundle

    return read_bundle(bundle_uri).users["user_id"].slice(0, count).to_pylist()


if __name__ == "__main__":
    run_entry(main)
