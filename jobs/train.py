"""python -m jobs.train CONFIG.yaml: a prepared data set → a trained run; the same command resumes it."""

from typing import Any

from jobs.entry import run_entry, run_session, verb_parser


def main() -> dict[str, Any]:
    """Parse, train, return the run and its validation metrics."""
    parser = verb_parser("train", "Train a run, or resume it.")
    parser.add_argument("--fresh", action="store_true", help="remove what an earlier run of this name left")
    arguments = parser.parse_args()

    from medley.config import load_run
    from medley.training.run import fit

    run = load_run(arguments.config, arguments.overrides)
    with run_session(run, arguments.address):
        return fit(run, fresh=arguments.fresh)


if __name__ == "__main__":
    run_entry(main)
