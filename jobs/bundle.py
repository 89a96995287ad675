"""python -m jobs.bundle CONFIG.yaml: a finished, evaluated run → the folder that serving needs. Needs no Ray."""

from typing import TYPE_CHECKING, Any

from jobs.entry import run_entry, verb_parser

if TYPE_CHECKING:
    from medley.config import Run


def bundle(run: "Run") -> dict[str, Any]:
    """Pack a run."""
    from medley.bundle import bundle_run
    from medley.training.run import RUN_KIND, find_prepared

    return bundle_run(run.run_uri, RUN_KIND, find_prepared(run), run.bundle_root)


def main() -> dict[str, Any]:
    """Parse, pack, return where the bundle is."""
    arguments = verb_parser("bundle", "Pack a finished, evaluated run for serving.").parse_args()

    from medley.config import load_run

    return bundle(load_run(arguments.config, arguments.overrides))


if __name__ == "__main__":
    run_entry(main)
