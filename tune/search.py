"""python -m tune.search CONFIG.yaml SPACE.yaml [key=value …]: a prepared data set → the best configuration in a space."""

import argparse
from typing import Any

from jobs.entry import run_entry, run_session


def main() -> dict[str, Any]:
    """Parse, search, return the winner and where it stands."""
    parser = argparse.ArgumentParser(prog="python -m tune.search", description="Search a space for the best configuration of a run.")
    parser.add_argument("config", metavar="CONFIG.yaml", help="configuration of the run, the first trial")
    parser.add_argument("space", metavar="SPACE.yaml", help="settings to vary and their values, see tune/spaces")
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value", help="settings that replace those of the file")
    parser.add_argument("--resume", action="store_true", help="go on with the trials of an interrupted search")
    parser.add_argument("--fresh", action="store_true", help="remove what an earlier search of this name left")
    parser.add_argument("--address", help="Ray cluster to join; default: RAY_ADDRESS, else a local Ray")
    arguments = parser.parse_intermixed_args()

    from medley.config import load_run
    from medley.search.search import search

    run = load_run(arguments.config, arguments.overrides)
    with run_session(run, arguments.address):
        result = search(run, arguments.space, resume=arguments.resume, fresh=arguments.fresh)
        del result["best_run"]
        return result


if __name__ == "__main__":
    run_entry(main)
