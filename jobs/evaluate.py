"""python -m jobs.evaluate CONFIG.yaml [evaluate.against=RUN]: a finished run ranked on its splits, beside its baselines, with a report page."""

from typing import TYPE_CHECKING, Any

from jobs.entry import run_entry, run_session, verb_parser

if TYPE_CHECKING:
    from medley.config import Run


def evaluate(run: "Run") -> dict[str, Any]:
    """Measure a run and write its report; needs a Ray session. Returns split → scorer → group → metric."""
    from medley.manifest import absolute_uri, join_uri
    from medley.search.content import run_content
    from medley.training.compare import evaluate_run
    from medley.training.run import RUN_KIND, find_prepared

    data, against = find_prepared(run), run.evaluate.against
    if against is not None:
        against = absolute_uri(against) if "/" in against else join_uri(run.storage, "runs", against)
    return evaluate_run(run.run_uri, RUN_KIND, data, run.tables_uri, run.evaluate, content=run_content(run, data), against_uri=against, seed=run.seed)


def main() -> dict[str, Any]:
    """Parse, evaluate, return split → scorer → group → metric, and where the page is."""
    arguments = verb_parser("evaluate", "Rank the splits with a finished run and its baselines; write report/report.html beside the run.").parse_args()

    from medley.config import load_run
    from medley.manifest import join_uri

    run = load_run(arguments.config, arguments.overrides)
    with run_session(run, arguments.address):
        return {"run": run.run_uri, "metrics": evaluate(run), "report": join_uri(run.run_uri, "report", "report.html")}


if __name__ == "__main__":
    run_entry(main)
