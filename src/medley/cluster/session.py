"""The one place that joins or starts Ray."""

import logging
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import medley
from medley.manifest import absolute_uri
from medley.schema import InputError

logger = logging.getLogger(__name__)

WORKER_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Keeps freed tensors' memory in the process: page faults were a quarter of an epoch on CPUs.
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}
"""What every Ray process of ours sees unless the user's environment says otherwise; `cluster/runtime_env.yaml` gives submitted jobs the same."""

SHARED_MOUNT = "MEDLEY_SHARED_MOUNT"
"""Environment variable: `1` says that local storage paths lie on a mount that every node has under the same path."""

SUBMITTED_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the driver of a submitted job; its runtime environment already carries the code and the variables."""

CONNECT_SECONDS = 10


@contextmanager
def ray_session(
    address: str | None = None, *, num_cpus: int | None = None, object_store_bytes: int = 10**9, worker_threads: int | None = None
) -> Iterator[None]:
    """Inside the block Ray is initialised; a Ray that this process already has is used as it is and stays up.

    address: `HOST:PORT` of a cluster's head or `auto`; default RAY_ADDRESS, else a local Ray (also by the word `local`).
    The remaining settings shape a local Ray only.
    num_cpus: logical CPUs; default max(8, cores), because trainers, trials and Ray Data tasks wait for each other for ever when CPUs run out.
    object_store_bytes: small by default, because the first touch of every page of the store is slow.
    worker_threads: OMP_NUM_THREADS of the workers; default Ray's rule (the CPUs of the task, at least 1).

    Raises InputError when the address is of another kind, does not answer within CONNECT_SECONDS, or refuses our token.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        variables = _local_environment(worker_threads)
        options: dict[str, Any] = {
            "num_cpus": num_cpus or max(8, os.cpu_count() or 1),
            "object_store_memory": object_store_bytes,
            "include_dashboard": False,
        }
    else:
        _require_answer(address)
        variables = {}
        options = {} if SUBMITTED_JOB in os.environ else {"runtime_env": _joining_runtime_env()}
    with _environment({**_with_users_choice(WORKER_ENVIRONMENT), **variables}):
        _initialise(address, options)
        try:
            yield
        finally:
            ray.shutdown()


def _initialise(address: str, options: Mapping[str, Any]) -> None:
    """`ray.init` with the user's mistakes turned into InputError, and Ray Data's progress bars off."""
    import ray
    from ray.data import DataContext
    from ray.exceptions import AuthenticationError

    if address == "local":
        _choose_authentication()
    try:
        ray.init(address=address, **options)
    except AuthenticationError as error:
        raise _refused(address) from error
    except ConnectionError as error:
        raise InputError(f"no Ray answers at '{address}'", "a running cluster", "start one (`ray start --head`), or leave --address out") from error
    # The environment variable is only read when ray.data is imported, which may have happened long before.
    DataContext.get_current().enable_progress_bars = False


def _refused(address: str) -> InputError:
    return InputError(
        f"the cluster at '{address}' refuses our token (RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE', 'unset')})",
        "the token its head was started with",
        "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file that holds it",
    )


def _choose_authentication() -> None:
    """Token mode for a local Ray, with a random token of this process instead of one written to the home directory.

    Ray's servers listen on every interface even on one machine (also with node address 127.0.0.1), so `disabled` would let the
    network run code here. RAY_AUTH_MODE is left for `ray.init` to set: Ray reads the variable when it is imported, and only its own
    switch is noticed later. Mode and token stay in the environment when the session ends, because Ray keeps the first token it
    saw for the life of the process. A mode, token or token file chosen by the user is kept.
    """
    if os.environ.get("RAY_AUTH_MODE") != "disabled" and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _local_environment(worker_threads: int | None) -> dict[str, str]:
    """Variables that a local Ray hands down to its workers: where medley and the programs of this virtual environment (ninja) are."""
    variables = {"PATH": _joined(os.path.dirname(sys.executable), os.environ.get("PATH"))}
    source = _source_checkout()
    if source:
        variables["PYTHONPATH"] = _joined(str(source), os.environ.get("PYTHONPATH"))
    if worker_threads:
        variables["OMP_NUM_THREADS"] = str(worker_threads)
    return variables


def _joining_runtime_env() -> dict[str, Any]:
    """Runtime environment for a driver that joins a cluster by itself: its checkout of medley is uploaded, an installed one is expected there."""
    # A directory that another host lacks is harmless on PATH; hosts with the same layout find ninja.
    runtime_env: dict[str, Any] = {"env_vars": {**_with_users_choice(WORKER_ENVIRONMENT), "PATH": os.path.dirname(sys.executable) + ":${PATH}"}}
    source = _source_checkout()
    if source:
        runtime_env["py_modules"] = [str(source / "medley")]
    return runtime_env


def _source_checkout() -> Path | None:
    """The `src` folder that medley was imported from, or None when it is installed."""
    source = Path(medley.__path__[0]).resolve().parent
    return None if "site-packages" in source.parts else source


def _require_answer(address: str) -> None:
    """Ask the head for its cluster id, with our token, before `ray.init` does.

    `ray.init` waits for minutes where nobody answers and 20 s where the token is wrong; the gRPC health service answers strangers too.
    """
    if "://" in address:
        raise InputError(
            f"Ray address '{address}'",
            "HOST:PORT of the head's GCS (usually port 6379), 'auto' or 'local'",
            "for an http:// address use `python -m jobs.submit VERB CONFIG --address URL`",
        )
    if address == "auto" or os.environ.get("RAY_USE_TLS") == "1":
        return  # found among local processes; encrypted clusters need Ray's own certificates
    import grpc
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    metadata = [(name.lower(), value) for name, value in get_auth_headers_if_auth_enabled({}).items()]
    channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
    try:
        channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=CONNECT_SECONDS, wait_for_ready=True, metadata=metadata)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise _refused(address) from error
        raise InputError(
            f"no Ray answers at '{address}' within {CONNECT_SECONDS} s ({error.code().name})",
            "HOST:PORT of a running head",
            "check --address and RAY_ADDRESS, or leave both out for a local Ray",
        ) from error
    finally:
        channel.close()


def is_remote_cluster() -> bool:
    """Whether the work of the joined cluster may run on other machines: another node is alive, or this one offers no CPU (autoscaling heads)."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    here = ray.util.get_node_ip_address()
    has_local_cpus = any(node["NodeManagerAddress"] == here and node["Resources"].get("CPU", 0) > 0 for node in alive)
    return not has_local_cpus or any(node["NodeManagerAddress"] != here for node in alive)


def is_local_path(storage_uri: str) -> bool:
    """Whether a storage URI names a place on one machine's disk."""
    return "://" not in storage_uri or storage_uri.startswith("file://")


def require_shared_storage(storage_uri: str, *, shared_mount: bool = False) -> None:
    """Refuse a local path when work runs on several machines; call it inside a `ray_session`.

    shared_mount (or MEDLEY_SHARED_MOUNT=1, which `jobs.submit --shared-mount` sets): the path is a mount that every node has.
    """
    if shared_mount or os.environ.get(SHARED_MOUNT) == "1" or not is_local_path(storage_uri) or not is_remote_cluster():
        return
    raise InputError(
        f"storage '{absolute_uri(storage_uri)}' is a local path, and this cluster runs work on other machines",
        "a place that every node reaches, such as s3://bucket/prefix",
        f"set storage=URI, or {SHARED_MOUNT}=1 (jobs.submit --shared-mount) when every node mounts this path",
    )


def _joined(first: str, rest: str | None) -> str:
    return f"{first}{os.pathsep}{rest}" if rest else first


def _with_users_choice(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables, with the values the user has already given some of them."""
    return {name: os.environ.get(name, value) for name, value in variables.items()}


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables of this process, and of what it starts, for the length of a block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
