"""python -m jobs.pipeline CONFIG.yaml: convert, prepare, search, train, evaluate and bundle in one Ray session; what is complete is skipped."""

from typing import TYPE_CHECKING, Any

from jobs.entry import run_entry, run_session, verb_parser

if TYPE_CHECKING:
    from medley.config import Run


def run_pipeline(run: "Run") -> dict[str, Any]:
    """All stages of a run; needs a Ray session. Returns each stage's result."""
    from jobs.bundle import bundle
    from jobs.encode import encode_run
    from jobs.evaluate import evaluate
    from jobs.prepare import prepare_run
    from medley.data.convert import convert
    from medley.search.search import search
    from medley.training.run import fit

    results: dict[str, Any] = {}
    if run.convert is not None:
        results["convert"] = convert(run.convert, run.tables_uri)
    results["prepare"] = prepare_run(run)
    if any(encoder.cache for encoder in run.model.encoders.values()):
        results["encode"] = encode_run(run)
    if run.search.space is not None:
        results["search"] = search(run, run.search.space, resume=True)
        run = results["search"].pop("best_run")
    results["train"] = fit(run)
    results["evaluate"] = evaluate(run)
    results["bundle"] = bundle(run)
    return results


def main() -> dict[str, Any]:
    """Parse, run every stage, return their results."""
    arguments = verb_parser("pipeline", "Every stage from raw data to a bundle.").parse_args()

    from medley.config import load_run

    run = load_run(arguments.config, arguments.overrides)
    with run_session(run, arguments.address):
        return run_pipeline(run)


if __name__ == "__main__":
    run_entry(main)
