"""Send a verb to a running Ray cluster, or look after what runs there."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.entry import run_entry

USAGE = """python -m jobs.submit VERB CONFIG.yaml [key=value …] --address URL [--follow] [--retries N] [--shared-mount]
       python -m jobs.submit search CONFIG.yaml SPACE.yaml [key=value …] --address URL …
       python -m jobs.submit status|logs|stop ID --address URL
       python -m jobs.submit list --address URL"""


def parser() -> argparse.ArgumentParser:
    """Arguments of `python -m jobs.submit`."""
    parser = argparse.ArgumentParser(prog="python -m jobs.submit", description=__doc__, usage=USAGE)
    parser.add_argument(
        "action", metavar="VERB", help="prepare, encode, train, evaluate, ablation, bundle, score, pipeline, doctor, search; status, logs, stop, list"
    )
    parser.add_argument("arguments", nargs="*", help="CONFIG.yaml inside this repository and dotted.key=value settings; or the id of a job")
    parser.add_argument("--address", required=True, metavar="URL", help="the cluster's dashboard, http://HOST:8265")
    parser.add_argument("--follow", action="store_true", help="print the job's log to standard error and wait for its end")
    parser.add_argument("--retries", type=int, default=0, metavar="N", help="wait, and start a failed job again up to N times")
    parser.add_argument("--shared-mount", action="store_true", help="a local storage path is a mount that every node has")
    return parser


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Do what the arguments say; the result to print."""
    from medley.cluster import submit as cluster
    from medley.schema import InputError

    num_files = {"list": 0, "search": 2}.get(args.action, 1)
    names, overrides = args.arguments[:num_files], args.arguments[num_files:]
    if len(names) < num_files:
        raise InputError(f"{len(args.arguments)} arguments after '{args.action}'", f"at least {num_files}", "see python -m jobs.submit --help")
    if args.action == "list":
        return {"jobs": [asdict(job) for job in cluster.list_jobs(address=args.address)]}
    if args.action == "status":
        return asdict(cluster.job_status(names[0], address=args.address))
    if args.action == "logs":
        log = cluster.job_logs(names[0], address=args.address)
        print(log, end="" if log.endswith("\n") else "\n")
        return {"submission_id": names[0], "num_characters": len(log)}
    if args.action == "stop":
        return {"submission_id": names[0], "was_running": cluster.stop_job(names[0], address=args.address)}
    result = cluster.submit(
        args.action,
        names[0],
        overrides,
        address=args.address,
        working_directory=str(Path(__file__).resolve().parents[1]),
        space=names[1] if num_files == 2 else None,
        follow=args.follow,
        retries=args.retries,
        shared_mount=args.shared_mount,
    )
    if result.status in ("FAILED", "STOPPED"):
        raise cluster.JobFailed(f"job {result.submission_id} {result.status} after {result.seconds} s: {result.message}")
    return asdict(result)


if __name__ == "__main__":
    arguments = parser().parse_intermixed_args()
    run_entry(lambda: run(arguments))
