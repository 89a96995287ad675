"""python -m jobs.prepare CONFIG.yaml: tables → a prepared data set (ids, cleaned media in shards, splits, quarantine)."""

from typing import TYPE_CHECKING, Any

from jobs.entry import run_entry, run_session, verb_parser

if TYPE_CHECKING:
    from medley.config import Run


def prepare_run(run: "Run") -> dict[str, Any]:
    """Prepare a run's tables; needs a Ray session."""
    from medley.data.prepare import prepare

    return prepare(run.tables_uri, run.prepared_root, run.data, run.seed)


def main() -> dict[str, Any]:
    """Parse, prepare, return what was written."""
    arguments = verb_parser("prepare", "Tables → prepared data set.").parse_args()

    from medley.config import load_run

    run = load_run(arguments.config, arguments.overrides)
    with run_session(run, arguments.address):
        return prepare_run(run)


if __name__ == "__main__":
    run_entry(main)
