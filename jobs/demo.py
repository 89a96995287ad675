"""python -m jobs.demo CONFIG.yaml: the whole road once: pipeline, an id-only baseline, one comparison, a server that answers a few users."""

import sys
import time
from typing import Any

from jobs.entry import run_entry, run_session, verb_parser

NUM_USERS = 3


def main() -> dict[str, Any]:
    """Run every stage, print what came out, return the figures."""
    parser = verb_parser("demo", "The whole road on synthetic data: search, train, compare, serve, ask.")
    parser.add_argument("--baseline", default="jobs/configs/demo_id_only.yaml", help="configuration of the baseline without content")
    arguments = parser.parse_args()

    from jobs.evaluate import evaluate
    from jobs.pipeline import run_pipeline
    from medley.config import load_run
    from medley.training.run import fit

    started = time.monotonic()
    run, baseline = load_run(arguments.config, arguments.overrides), load_run(arguments.baseline, [o for o in arguments.overrides if o.startswith("storage=")])
    with run_session(run, arguments.address):
        stages = run_pipeline(run)
        fit(baseline)
        measured = stages["evaluate"]["test"]
        table = {
            "medley": measured["model"],
            "id-only MF": evaluate(baseline)["test"]["model"],
            "popularity": measured["popularity"],
            "oracle": measured["oracle"],
        }
        bundle = stages["bundle"]["bundle"]
        answers = ask(bundle)
    seconds = round(time.monotonic() - started)
    print(report(table, stages["train"], bundle, answers, seconds), file=sys.stderr)
    figures = {name: {group: values["ndcg@10"] for group, values in groups.items()} for name, groups in table.items()}
    return {"bundle": bundle, "ndcg@10": figures, "seconds": seconds}


def ask(bundle: str) -> dict[str, Any]:
    """Serve a bundle, ask for the first users over HTTP, stop the server. Returns user → answer."""
    from medley.bundle import read_bundle
    from medley.serving.client import MedleyClient
    from medley.serving.deployments import ServeArgs, serve_locally

    users = read_bundle(bundle).users["user_id"].slice(0, NUM_USERS).to_pylist()
    with serve_locally(ServeArgs(bundle=bundle)) as url, MedleyClient(url, timeout_seconds=30) as client:
        return {user: client.recommend(user, k=5) for user in users}


def report(table: dict[str, Any], training: dict[str, Any], bundle: str, answers: dict[str, Any], seconds: int) -> str:
    """What a person reads at the end."""
    from medley.training.evaluate import format_table

    user, answer = next(iter(answers.items()))
    speed = f"{training['rows_per_second']:,} rows/s, {training['steps_per_second']} steps/s, peak {training['peak_memory_megabytes']:,} MB per worker"
    return "\n".join(
        [
            "",
            format_table(table, "ndcg@10"),
            "(test split, newest tenth of the interactions; warm and cold items ranked apart; chance is popularity's figure on cold items)",
            "",
            f"training: {speed}",
            f"top five of {user}, asked over HTTP with {len(answers) - 1} others:",
            *(f"  {item.score:7.3f}  {item.item_id}  {item.title}" for item in answer.items),
            "",
            f"{seconds} s. The server is stopped; this starts it again:",
            f"  .venv/bin/serve run serve.app:app bundle={bundle}",
        ]
    )


if __name__ == "__main__":
    run_entry(main)
