"""Send a verb to a running Ray cluster through its jobs API, follow it, try it again, and read its result."""

import asyncio
import ipaddress
import json
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from medley.cluster.session import SHARED_MOUNT, is_local_path
from medley.manifest import absolute_uri, fingerprint
from medley.schema import InputError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

logger = logging.getLogger(__name__)

VERBS = ("prepare", "encode", "train", "evaluate", "ablation", "bundle", "score", "pipeline", "doctor")
MODULES = {verb: f"jobs.{verb}" for verb in VERBS} | {"search": "tune.search"}
"""Verbs that may be submitted, and the module each one runs."""

RUNTIME_ENV = "cluster/runtime_env.yaml"
DEFAULT_STORAGE = "./out"
USER_MISTAKE = 2
"""Exit code of an entry point that a second attempt cannot help."""

ANSWER_SECONDS = 10
UNREACHABLE_SECONDS = 120
"""How long a followed cluster may stay silent (a head that restarts) before we give up watching; the job is not stopped."""


class JobFailed(RuntimeError):
    """A submitted job ended without success."""


@dataclass(frozen=True)
class JobResult:
    """State of one submitted job. status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED. seconds: of this attempt, 0 before it starts.

    result: the last JSON object that the job printed (its standard output and error arrive as one log), None where there is none.
    exit_code: of the command, None while it runs or when it never started.
    """

    submission_id: str
    status: str
    seconds: float
    message: str
    result: dict[str, Any] | None
    exit_code: int | None


def submit(
    verb: str,
    config_uri: str,
    overrides: Sequence[str],
    *,
    address: str,
    working_directory: str,
    space: str | None = None,
    follow: bool = False,
    retries: int = 0,
    shared_mount: bool = False,
) -> JobResult:
    """Run `python -m jobs.VERB CONFIG key=value …` (`search`: `python -m tune.search CONFIG SPACE …`) on the cluster at `address`.

    working_directory: the repository; it is uploaded (less what .rayignore, .gitignore and runtime_env.yaml leave out), and the job starts in it.
    A relative local `storage` is made absolute, because the job's own directory is a temporary copy. A local `storage` is refused when
    `address` is another machine, unless shared_mount says that every node has it under this path. Everything is checked before the first connection.
    The same verb, config and overrides submitted again while they run are followed, not started twice. follow and retries: see `submit_command`.
    """
    _require_verb(verb)
    root = Path(working_directory).resolve()
    config = _file_inside(root, config_uri)
    inputs = [config] + ([_file_inside(root, space)] if space else [])
    settings = _read_yaml(config)
    url = _checked_url(address)
    overrides = _with_absolute_storage(settings, overrides)
    _refuse_local_storage(overrides, url, shared_mount)
    command = entrypoint_for(verb, [str(path.relative_to(root)) for path in inputs], overrides)
    environment = runtime_env(root, {SHARED_MOUNT: "1"} if shared_mount else {})
    run_name = _last_value(overrides, "name") or str(settings.get("name", config.stem))
    name = job_name(run_name, verb, [path.read_bytes() for path in inputs], overrides)
    return submit_command(command, address=url, name=name, runtime_environment=environment, follow=follow, retries=retries)


def submit_command(command: str, *, address: str, name: str, runtime_environment: Mapping[str, Any], follow: bool = False, retries: int = 0) -> JobResult:
    """Run a shell command as job `NAME-ATTEMPT`. With neither follow nor retries it returns at once, else when the job has ended.

    follow: print its log to standard error. retries: how many times a failed job is started again, under the next attempt number, so that
    training resumes from its checkpoints; a job that ended with exit code 2 (a user's mistake) or was stopped is not.
    """
    client = _connect(_checked_url(address))
    while True:
        submission_id, note = _start(client, command, name, runtime_environment)
        if not follow and not retries:
            return JobResult(submission_id, str(client.get_job_status(submission_id).value), 0.0, note, None, None)
        outcome = _wait(client, submission_id, follow)
        if outcome.status != "FAILED" or outcome.exit_code == USER_MISTAKE or not retries:
            return outcome
        logger.warning("job %s failed (%s); %d more attempts", submission_id, outcome.message, retries)
        retries -= 1


def entrypoint_for(verb: str, files: Sequence[str], overrides: Sequence[str]) -> str:
    """The shell command of a verb, every argument quoted. files: CONFIG, and for `search` SPACE, relative to the working directory."""
    _require_verb(verb)
    num_files = 2 if verb == "search" else 1
    if len(files) != num_files:
        raise InputError(f"{len(files)} files for '{verb}'", "CONFIG.yaml SPACE.yaml" if num_files == 2 else "CONFIG.yaml", "correct the command")
    for override in overrides:
        if not re.match(r"[A-Za-z_][\w.-]*=", override) or "\0" in override:
            raise InputError(f"argument '{override}'", "dotted.key=value", "options of the verb itself cannot be submitted")
    return shlex.join(["python", "-m", MODULES[verb], *files, *overrides])


def job_name(run_name: str, verb: str, contents: Sequence[bytes], overrides: Sequence[str]) -> str:
    """Submission id less the attempt number: the run's name made a slug, the verb, and a fingerprint of everything that decides the work."""
    slug = re.sub(r"[^a-z0-9._]+", "-", run_name.lower()).strip("-._")[:48] or "run"
    return f"{slug}-{verb}-{fingerprint(verb, [content.decode('utf-8', 'replace') for content in contents], list(overrides))}"


def runtime_env(root: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """Ray's runtime environment from cluster/runtime_env.yaml, its working directory made absolute, with further variables."""
    environment = _read_yaml(_file_inside(root, str(root / RUNTIME_ENV)))
    environment["working_dir"] = str((root / environment["working_dir"]).resolve())
    environment["env_vars"] = {**environment.get("env_vars", {}), **variables}
    return environment


def job_status(submission_id: str, *, address: str) -> JobResult:
    """The state of one job, with its result when it has ended."""
    client = _connect(_checked_url(address))
    _require_job(client, submission_id)
    return _outcome(client, submission_id)


def job_logs(submission_id: str, *, address: str) -> str:
    """Everything the job has printed so far, standard output and error together."""
    client = _connect(_checked_url(address))
    _require_job(client, submission_id)
    return client.get_job_logs(submission_id)


def stop_job(submission_id: str, *, address: str) -> bool:
    """Ask a job to end (SIGTERM, then SIGKILL); False when it had ended before."""
    client = _connect(_checked_url(address))
    _require_job(client, submission_id)
    return client.stop_job(submission_id)


def list_jobs(*, address: str) -> list[JobResult]:
    """All submitted jobs the cluster remembers, oldest first, without their results."""
    jobs = [job for job in _connect(_checked_url(address)).list_jobs() if job.submission_id]
    return [
        JobResult(job.submission_id or "", job.status.value, _seconds(job), job.message or "", None, job.driver_exit_code)
        for job in sorted(jobs, key=lambda job: job.start_time or 0)
    ]


def _require_verb(verb: str) -> None:
    if verb not in MODULES:
        raise InputError(f"verb '{verb}'", f"one of {', '.join(MODULES)}", "see python -m jobs.submit --help")


def _file_inside(root: Path, path: str) -> Path:
    """An existing file below the directory that is uploaded, symbolic links followed."""
    found = Path(path).expanduser().resolve()
    if not found.is_file():
        raise InputError(f"file '{path}' does not exist", "a readable file", "check the path")
    if not found.is_relative_to(root):
        raise InputError(f"file '{found}'", f"a file inside '{root}', which is what the cluster receives", "copy it there, for instance to jobs/configs/")
    return found


def _read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; the job itself checks its keys."""
    from ruamel.yaml import YAML, YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(path.read_bytes())
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' is not YAML ({error})", "a YAML mapping", "correct the file") from error
    if not isinstance(content, dict):
        raise InputError(f"'{path}' holds {type(content).__name__}", "a YAML mapping", "correct the file")
    return content


def _last_value(overrides: Sequence[str], key: str) -> str | None:
    values = [override.partition("=")[2] for override in overrides if override.partition("=")[0] == key]
    return values[-1] if values else None


def _with_absolute_storage(settings: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """The overrides with `storage` as the last word on the matter, a local path made absolute where the user stands."""
    storage = _last_value(overrides, "storage") or str(settings.get("storage", DEFAULT_STORAGE))
    return [override for override in overrides if not override.startswith("storage=")] + [f"storage={absolute_uri(storage)}"]


def _refuse_local_storage(overrides: Sequence[str], url: str, shared_mount: bool) -> None:
    storage = _last_value(overrides, "storage") or ""
    if shared_mount or _is_loopback(url) or not is_local_path(storage):
        return
    raise InputError(
        f"storage '{storage}' is a path of this machine, and the cluster is at {url}",
        "a place that every node reaches, such as s3://bucket/prefix",
        "add storage=URI, or --shared-mount when every node mounts this path",
    )


def _checked_url(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"address '{address}'", "the URL of the cluster's dashboard, http://HOST:8265", "correct --address")
    return address.rstrip("/")


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _connect(url: str) -> "JobSubmissionClient":
    """A client of the cluster at `url`, after checking that Ray answers there and takes our token."""
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    if url.startswith("http://") and not _is_loopback(url) and os.environ.get("RAY_AUTH_MODE") == "token":
        logger.warning("the token travels unencrypted to %s: keep to a private network, a port forward or https", url)
    try:
        # Ray's client has no timeouts: a silent address would hold it for ever.
        requests.get(f"{url}/api/version", timeout=ANSWER_SECONDS)
    except requests.RequestException as error:
        raise InputError(
            f"nothing answers at {url} within {ANSWER_SECONDS} s ({type(error).__name__})", "the dashboard of a running cluster", "check --address"
        ) from error
    # Ray lets these variables overrule the address it is given, even with another cluster's.
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = url
    try:
        return JobSubmissionClient(url)
    except AuthenticationError as error:
        raise InputError(
            f"the cluster at {url} refuses us ({str(error).splitlines()[0]}; RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE', 'unset')})",
            "the token its head was started with",
            "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file that holds it (made by `ray get-auth-token --generate`)",
        ) from error
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{url} answers, but not as Ray's jobs API ({error})", "the dashboard of a running cluster", "check --address") from error
    finally:
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def _require_job(client: "JobSubmissionClient", submission_id: str) -> None:
    known = [job.submission_id for job in client.list_jobs()]
    if submission_id not in known:
        raise InputError(f"job '{submission_id}'", "a job of this cluster", "see python -m jobs.submit list")


def _start(client: "JobSubmissionClient", command: str, name: str, runtime_environment: Mapping[str, Any]) -> tuple[str, str]:
    """Start the next attempt of a job, or find the one that runs; its submission id and what was done."""
    attempts = _attempts(client, name)
    last = max(attempts, default=0)
    if last and not attempts[last]:
        logger.info("job %s-%d already runs", name, last)
        return f"{name}-{last}", "already running"
    submission_id = f"{name}-{last + 1}"
    try:
        client.submit_job(entrypoint=command, submission_id=submission_id, runtime_env=dict(runtime_environment), metadata={"command": command})
    except RuntimeError:
        if last + 1 not in _attempts(client, name):
            raise
        return submission_id, "already running"  # somebody else was faster
    logger.info("submitted %s: %s", submission_id, command)
    return submission_id, "submitted"


def _attempts(client: "JobSubmissionClient", name: str) -> dict[int, bool]:
    """Attempt number → has ended, of every attempt at a job."""
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    matches = [(pattern.fullmatch(job.submission_id or ""), job.status.is_terminal()) for job in client.list_jobs()]
    return {int(match[1]): has_ended for match, has_ended in matches if match}


def _wait(client: "JobSubmissionClient", submission_id: str, follow: bool) -> JobResult:
    """Wait until the job has ended; with follow its log goes to standard error as it grows."""
    num_printed = 0
    last_answer = time.monotonic()
    while True:
        try:
            has_ended = client.get_job_status(submission_id).is_terminal()
            last_answer = time.monotonic()
            if has_ended:
                if follow:
                    sys.stderr.write(client.get_job_logs(submission_id)[num_printed:])
                return _outcome(client, submission_id)
            if follow:
                num_printed = asyncio.run(_print_log(client, submission_id, num_printed))
        except (OSError, RuntimeError) as error:
            if time.monotonic() - last_answer > UNREACHABLE_SECONDS:
                raise JobFailed(f"the cluster has not answered for {UNREACHABLE_SECONDS} s; job {submission_id} may still run") from error
            logger.warning("lost sight of job %s (%s); looking again", submission_id, error)
        time.sleep(1)


async def _print_log(client: "JobSubmissionClient", submission_id: str, num_printed: int) -> int:
    """Print the job's log beyond its first characters until the job ends or the connection drops; how many characters are printed now."""
    num_seen = 0
    try:
        async for text in client.tail_job_logs(submission_id):
            fresh = text[max(0, num_printed - num_seen) :]
            num_seen += len(text)
            sys.stderr.write(fresh)
            sys.stderr.flush()
    except (OSError, RuntimeError) as error:
        logger.warning("the log of job %s broke off (%s)", submission_id, error)
    return max(num_printed, num_seen)


def _outcome(client: "JobSubmissionClient", submission_id: str) -> JobResult:
    job = client.get_job_info(submission_id)
    result = last_json_object(client.get_job_logs(submission_id)) if job.status.is_terminal() else None
    return JobResult(submission_id, job.status.value, _seconds(job), job.message or "", result, job.driver_exit_code)


def _seconds(job: Any) -> float:
    """Wall time of a job so far; Ray counts in milliseconds."""
    return round((job.end_time or time.time() * 1000) / 1000 - job.start_time / 1000, 1) if job.start_time else 0.0


def last_json_object(log: str) -> dict[str, Any] | None:
    """The last line of a log that is a JSON object."""
    for line in reversed(log.splitlines()):
        try:
            value = json.loads(line) if line.startswith("{") else None
        except json.JSONDecodeError:
            continue
        if value is not None:
            return value
    return None
