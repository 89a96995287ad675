"""python -m jobs.score CONFIG.yaml [--k K] [--users FILE]: the top-K of many users in batch, as Parquet."""

from typing import Any

from jobs.entry import run_entry, run_session, verb_parser


def main() -> dict[str, Any]:
    """Parse, score, return where the answers are."""
    parser = verb_parser("score", "Top-K of every user of a run's bundle, with Ray Data.")
    parser.add_argument("--k", type=int, default=20, help="items per user (default 20)")
    parser.add_argument("--users", help="Parquet with a user_id column; default: all users of the bundle")
    parser.add_argument("--processes", type=int, default=2, help="processes that hold the bundle (default 2)")
    arguments = parser.parse_args()

    from jobs.bundle import bundle
    from medley.config import load_run
    from medley.manifest import absolute_uri, join_uri
    from medley.serving.batch import score_users

    run = load_run(arguments.config, arguments.overrides)
    users = absolute_uri(arguments.users) if arguments.users else None
    with run_session(run, arguments.address):
        return score_users(bundle(run)["bundle"], join_uri(run.storage, "scores"), arguments.k, users, arguments.processes)


if __name__ == "__main__":
    run_entry(main)
