"""What every entry point shares: arguments of a configured verb, exit codes, the one JSON line of the result."""

import argparse
import contextlib
import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from medley.config import Run


def run_entry(main: Callable[[], dict[str, Any]]) -> NoReturn:
    """Call `main` and end the process: 0 and one JSON line on success, 2 and a message on a user's mistake, the code of its fault and a message where
    training was given up (training/faults.py), 1 on any other failure: a message where storage failed, else a traceback."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s | %(message)s", datefmt="%H:%M:%S")
    try:
        result = main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        from medley.schema import InputError
        from medley.storage import StorageError
        from medley.training.faults import TrainingStoppedError

        cause = getattr(error, "cause", None)  # what a Ray task's error wraps
        error = cause if isinstance(cause, InputError | StorageError) else error
        if isinstance(error, InputError | StorageError):
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2 if isinstance(error, InputError) else 1)
        if isinstance(error, TrainingStoppedError):
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        traceback.print_exc()
        sys.exit(1)
    print(json.dumps(result))
    sys.exit(0)


def verb_parser(verb: str, description: str) -> argparse.ArgumentParser:
    """The parser every configured verb starts from: CONFIG.yaml [dotted.key=value …] [--address URL]."""
    parser = argparse.ArgumentParser(prog=f"python -m jobs.{verb}", description=description)
    parser.add_argument("config", metavar="CONFIG.yaml", help="configuration of the run")
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value", help="settings that replace those of the file")
    parser.add_argument("--address", help="Ray cluster to join; default: RAY_ADDRESS, else a local Ray")
    return parser


@contextlib.contextmanager
def run_session(run: "Run", address: str | None) -> Iterator[None]:
    """A Ray session in which every node can reach the run's storage."""
    from medley.cluster.session import ray_session, require_shared_storage

    with ray_session(address):
        require_shared_storage(run.storage)
        yield
