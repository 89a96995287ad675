"""What a run needs around it: storage that keeps its word, the tested versions, a guarded Ray, enough processors and GPUs."""

import importlib.metadata
import os
import posixpath
import re
import stat
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

import medley
from medley.data.findings import Finding
from medley.manifest import join_uri, list_folder, open_storage, read_bytes, write_bytes
from medley.schema import InputError
from medley.storage import StorageError

PROBE_BYTES = 1 << 20
NUM_NAMED = 8
CORE_PACKAGES = ("ray", "torch", "deepspeed", "transformers", "pyarrow")
"""another version of these is likelier to break a run than one of the others"""


@dataclass(frozen=True)
class Node:
    """One machine as Ray's scheduler sees it."""

    num_cpus: float
    num_gpus: float
    memory_bytes: float
    """of the machine, where it is this one free memory"""
    gpu_memory_bytes: int | None = None
    """of the smallest of its GPUs; None where nobody has asked it"""


def check_storage(uri: str) -> list[Finding]:
    """Write under a temporary name, rename, read back, compare, delete: what every stage does. Whatever fails is an error."""
    name = f"doctor-{uuid.uuid4().hex[:8]}"
    place, content = join_uri(uri, name, "probe.bin"), os.urandom(PROBE_BYTES)
    remedy = "check that storage= can be written to, has room, and that the credentials in the environment allow all of it"
    try:
        filesystem, path = open_storage(place)
        started = time.monotonic()
        write_bytes(place, content)
        found = read_bytes(place)
        left = list_folder(join_uri(uri, name))
        filesystem.delete_dir(posixpath.dirname(path))
        seconds = time.monotonic() - started
    except InputError as error:
        return [Finding.of_mistake(error)]
    except (OSError, StorageError) as error:
        return [Finding("error", f"storage '{uri}' failed ({type(error).__name__}: {str(error).splitlines()[0]})", remedy, is_failure=True)]
    if found != content:
        return [Finding("error", f"storage '{uri}' gave back other bytes than were written", remedy, is_failure=True)]
    if left != ["probe.bin"]:
        return [Finding("error", f"storage '{uri}' still lists {left} after a rename", "its listing must be consistent at once", is_failure=True)]
    return [Finding("ok", f"storage '{uri}': 1 MB written, renamed, read and deleted in {seconds:.2f} s")]


def check_versions(constraints: Path | None = None) -> list[Finding]:
    """Installed packages against the tested set, `constraints.txt` of the checkout that medley was imported from."""
    path = constraints or Path(medley.__path__[0]).resolve().parents[1] / "constraints.txt"
    if not path.is_file():
        return [Finding("warning", "medley is installed without its constraints.txt: versions were not compared", "install by it, as the Makefile does")]
    tested = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", path.read_text(), re.MULTILINE))
    others = []
    for name, version in tested.items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # extras, and what another platform needs
        if installed.split("+")[0] != version:
            others.append((name not in CORE_PACKAGES, f"{name} {installed} (tested: {version})"))
    if not others:
        return [Finding("ok", f"versions: as tested ({', '.join(f'{name} {tested[name]}' for name in CORE_PACKAGES if name in tested)})")]
    listed = ", ".join(text for _, text in sorted(others)[:NUM_NAMED]) + (f" and {len(others) - NUM_NAMED} more" if len(others) > NUM_NAMED else "")
    return [Finding("warning", f"other versions than were tested: {listed}", "pip install --constraint constraints.txt --editable .")]


def check_authentication(address: str | None, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """How Ray will ask who is there."""
    mode = environment.get("RAY_AUTH_MODE")
    if mode == "disabled":
        remedy = "unset RAY_AUTH_MODE, or set it to token: Ray listens on every interface, and who reaches it can run code here"
        return [Finding("warning", "Ray's authentication is disabled (RAY_AUTH_MODE=disabled)", remedy)]
    findings = []
    token = environment.get("RAY_AUTH_TOKEN_PATH")
    if token is not None:
        if not Path(token).is_file():
            return [Finding("error", f"RAY_AUTH_TOKEN_PATH names '{token}', which is no file", "correct it; `ray get-auth-token --generate` writes one")]
        if stat.S_IMODE(Path(token).stat().st_mode) & 0o077:
            findings.append(Finding("warning", f"the token file '{token}' can be read by others", f"chmod 600 {token}"))
    if address is not None and mode != "token":
        remedy = "where its head wants a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        return [*findings, Finding("warning", f"joining '{address}' without a token (RAY_AUTH_MODE is unset)", remedy)]
    how = f"by token for '{address}'" if address is not None else "a local Ray gets a token of its own"
    return findings or [Finding("ok", f"authentication: {how}")]


def this_machine() -> list[Node]:
    """This machine as a local Ray of ours would see it, whose processors are logical: at least 8."""
    import torch

    num_gpus = torch.cuda.device_count()
    smallest = min((torch.cuda.get_device_properties(number).total_memory for number in range(num_gpus)), default=None)
    return [Node(max(8, os.cpu_count() or 1), num_gpus, free_memory_bytes(), smallest)]


def free_memory_bytes() -> int:
    """Memory that a new process could have here: what the kernel calls available, and what the container leaves."""
    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, int(text) - int(used.read_text()))
    return free


def cluster_nodes() -> list[Node]:
    """The living machines of the joined cluster."""
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(entry.get("CPU", 0), entry.get("GPU", 0), entry.get("memory", 0)) for entry in resources]


def num_places(node: Node, cpus_per_worker: float, use_gpu: bool) -> int:
    """Workers that a machine has room for."""
    return int(min(node.num_cpus / cpus_per_worker, node.num_gpus if use_gpu else float("inf")))


def check_resources(nodes: Sequence[Node], num_workers: int, cpus_per_worker: float, use_gpu: bool) -> list[Finding]:
    """Whether all workers find a place: each needs its processors, and its GPU, on one machine."""
    room = [num_places(node, cpus_per_worker, use_gpu) for node in nodes]
    wanted = f"{cpus_per_worker:g} CPU" + (" and 1 GPU" if use_gpu else "")
    num_cpus, num_gpus = sum(node.num_cpus for node in nodes), sum(node.num_gpus for node in nodes)
    present = f"{len(nodes)} machine{'s' if len(nodes) != 1 else ''} with {num_cpus:g} CPUs and {num_gpus:g} GPUs"
    if sum(room) >= num_workers:
        return [Finding("ok", f"resources: {num_workers} worker{'s' if num_workers != 1 else ''} of {wanted} each fit {present}")]
    missing = num_workers - sum(room)
    what = f"train.workers={num_workers} of {wanted} each; {present} ha{'s' if len(nodes) == 1 else 've'} room for {sum(room)}: {missing} more would be needed"
    remedy = "lower train.workers or train.cpus_per_worker, or add machines"
    if use_gpu and not any(node.num_gpus for node in nodes):
        remedy = "there is no GPU at all: set train.use_gpu=false, or join a cluster that has some"
    return [Finding("error", what, remedy)]
