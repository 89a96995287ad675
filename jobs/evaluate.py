"""python -m jobs.evaluate CONFIG.yaml: a finished run ranked on its splits, beside popularity and the oracle where there is one."""

from typing import TYPE_CHECKING, Any

from jobs.entry import run_entry, run_session, verb_parser

if TYPE_CHECKING:
    from medley.config import Run


def evaluate(run: "Run") -> dict[str, Any]:
    """Measure a run; needs a Ray session."""
    from medley.training.compare import evaluate_run
    from medley.training.run import RUN_KIND, find_prepared

    return evaluate_run(run.run_uri, RUN_KIND, find_prepared(run), run.tables_uri, run.evaluate)


def main() -> dict[str, Any]:
    """Parse, evaluate, return split → scorer → group → metric."""
    arguments = verb_parser("evaluate", "Rank the splits with a finished run and its baselines.").parse_args()

    from medley.config import load_run

    run = load_run(arguments.config, arguments.overrides)
    with run_session(run, arguments.address):
        return {"run": run.run_uri, "metrics": evaluate(run)}


if __name__ == "__main__":
    run_entry(main)
