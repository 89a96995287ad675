"""python -m jobs.doctor CONFIG.yaml: what the data are like and whether the run would fit, before anything is started."""

import contextlib
import json
import os
import sys
from typing import Any

from jobs.entry import run_entry, verb_parser


def main() -> dict[str, Any]:
    """Parse, examine, print what a person reads to standard error, return the findings; errors end the process with their code."""
    arguments = verb_parser("doctor", "Examine data, storage, versions, resources and memory of a run.").parse_args()

    from medley.cluster.doctor import check
    from medley.cluster.session import ray_session
    from medley.config import load_run

    run = load_run(arguments.config, arguments.overrides)
    address = arguments.address or os.environ.get("RAY_ADDRESS")
    # Without a cluster no Ray is started: the local one that a verb would start is as this machine is.
    with ray_session(address) if address else contextlib.nullcontext():
        checkup = check(run, address)
    print(checkup.text(), file=sys.stderr)
    if checkup.exit_code:
        print(json.dumps(checkup.figures()))
        raise SystemExit(checkup.exit_code)
    return checkup.figures()


if __name__ == "__main__":
    run_entry(main)
