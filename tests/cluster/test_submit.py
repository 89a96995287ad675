"""Submitting: what is checked before any connection, and a real head with token authentication, driven by the command line."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from medley.cluster.submit import MODULES, _is_loopback, entrypoint_for, job_name, last_json_object, runtime_env, submit
from medley.schema import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "0123456789abcdef" * 4

TRAIN = """
import json, os, pathlib, sys
from greeting import WORD
config, *overrides = sys.argv[1:]
assert pathlib.Path(config).is_file(), "the configuration was not uploaded"
storage = pathlib.Path(next(word for word in overrides if word.startswith("storage=")).removeprefix("storage="))
if "mistake=yes" in overrides:
    print("error: mistake", file=sys.stderr)
    sys.exit(2)
storage.mkdir(parents=True, exist_ok=True)
attempts = len(list(storage.iterdir())) + 1
(storage / str(attempts)).touch()
if attempts == 1:
    sys.exit("the first attempt dies")
print("trained, " + WORD)
print(json.dumps({"attempts": attempts, "overrides": overrides, "shared": os.environ.get("MEDLEY_SHARED_MOUNT"), "cwd": os.getcwd()}))
print("goodbye from a library", file=sys.stderr)
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository as small as one can be, with the real runtime environment and entry point."""
    root = tmp_path / "repository"
    for name in ("cluster/runtime_env.yaml", "jobs/submit.py", "jobs/entry.py", "jobs/__init__.py"):
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, target)
    (root / "jobs" / "train.py").write_text(TRAIN)
    (root / "src").mkdir()
    (root / "src" / "greeting.py").write_text("WORD = 'from the uploaded src'\n")
    (root / "run.yaml").write_text("name: Tiny run\nstorage: ./out\n")
    return root


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def submit_train(root: Path, config: Path, overrides: list[str], address: str = "http://10.0.0.5:8265", **options: bool) -> None:
    submit("train", str(config), overrides, address=address, working_directory=str(root), **options)


def test_entrypoint_keeps_every_argument_one_word_whatever_it_holds() -> None:
    nasty = ["name=a b; rm -rf /", "data.x=$(touch /tmp/pwned)", "y=`id`", "z='\"\\\n*?&|>#", "w="]
    words = shlex.split(entrypoint_for("train", ["jobs/configs/a b.yaml"], nasty))
    assert words == ["python", "-m", "jobs.train", "jobs/configs/a b.yaml", *nasty]
    echoed = subprocess.run(
        entrypoint_for("train", ["c.yaml"], nasty).replace("python -m jobs.train", "printf '%s\\0'"), shell=True, capture_output=True, check=True
    )
    assert echoed.stdout.decode().split("\0")[:-1] == ["c.yaml", *nasty]


@pytest.mark.parametrize("argument", ["--address=http://elsewhere", "-x=1", "; id", "a b=1", "key", "=1", "a=\0"])
def test_arguments_that_are_not_settings_are_refused(argument: str) -> None:
    with pytest.raises(InputError, match=r"dotted\.key=value"):
        entrypoint_for("train", ["c.yaml"], [argument])


def test_verbs_outside_the_list_are_refused() -> None:
    with pytest.raises(InputError, match="verb 'erase'"):
        entrypoint_for("erase", ["c.yaml"], [])


def test_search_takes_a_space_beside_the_config() -> None:
    assert entrypoint_for("search", ["c.yaml", "s.yaml"], ["k=1"]) == "python -m tune.search c.yaml s.yaml k=1"
    with pytest.raises(InputError, match=r"CONFIG.yaml SPACE.yaml"):
        entrypoint_for("search", ["c.yaml"], [])


def test_help_names_every_verb() -> None:
    shown = subprocess.run([sys.executable, "-m", "jobs.submit", "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert all(verb in shown for verb in (*MODULES, "status", "logs", "stop", "list"))


def test_job_name_depends_on_verb_config_and_overrides_alone() -> None:
    name = job_name("My Run/..", "train", [b"a: 1"], ["x=1"])
    assert name == job_name("My Run/..", "train", [b"a: 1"], ["x=1"])
    assert name.startswith("my-run-train-")
    others = {
        job_name("My Run/..", "evaluate", [b"a: 1"], ["x=1"]),
        job_name("My Run/..", "train", [b"a: 2"], ["x=1"]),
        job_name("My Run/..", "train", [b"a: 1"], ["x=2"]),
    }
    assert len(others | {name}) == 4


@pytest.mark.parametrize("address", ["http://10.0.0.5:8265", "https://ray.example.com", "http://localhost.example.com:8265", "http://127.0.0.1@10.0.0.5:8265"])
@pytest.mark.parametrize("overrides", [[], ["storage=/data/out"], ["storage=s3://b/p", "storage=file:///data"]])
def test_local_storage_is_refused_for_another_machine_before_any_connection(repository: Path, no_network: None, address: str, overrides: list[str]) -> None:
    with pytest.raises(InputError, match=r"storage '.*' is a path of this machine.*s3://.*--shared-mount"):
        submit_train(repository, repository / "run.yaml", overrides, address)


def test_a_config_outside_the_repository_is_refused_before_any_connection(repository: Path, no_network: None, tmp_path: Path) -> None:
    outside = tmp_path / "outside.yaml"
    outside.write_text("name: x\n")
    link = repository / "link.yaml"
    link.symlink_to(outside)
    for config in (outside, link):
        with pytest.raises(InputError, match="a file inside"):
            submit_train(repository, config, [])
    with pytest.raises(InputError, match="does not exist"):
        submit_train(repository, repository / "absent.yaml", [])


@pytest.mark.parametrize("content", ["- a\n", "a: [\n", "a: 1\na: 2\n", "42\n"])
def test_a_config_that_is_no_mapping_is_refused(repository: Path, no_network: None, content: str) -> None:
    (repository / "run.yaml").write_text(content)
    with pytest.raises(InputError, match="a YAML mapping"):
        submit_train(repository, repository / "run.yaml", [])


@pytest.mark.parametrize("address", ["10.0.0.5:8265", "ray://10.0.0.5:10001", "auto", "http://"])
def test_an_address_that_is_no_url_is_refused(repository: Path, no_network: None, address: str) -> None:
    with pytest.raises(InputError, match="http://HOST:8265"):
        submit_train(repository, repository / "run.yaml", [], address)


def test_loopback_is_told_by_the_host_alone() -> None:
    assert all(_is_loopback(url) for url in ("http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "http://127.8.8.8"))
    assert not any(_is_loopback(url) for url in ("http://0.0.0.0:1", "http://10.0.0.5", "http://2130706433", "http://127.0.0.1.example.com"))


def test_runtime_environment_gives_jobs_what_a_local_session_gives_its_workers() -> None:
    from medley.cluster.session import WORKER_ENVIRONMENT

    environment = runtime_env(REPOSITORY, {})
    assert environment["env_vars"] == {"PYTHONPATH": "src", **WORKER_ENVIRONMENT}
    assert environment["working_dir"] == str(REPOSITORY)


def test_the_last_json_object_of_a_log_is_the_result() -> None:
    assert last_json_object('{"a": 1}\nwords\n{"b": 2}\n{broken\n[3]\nbye\n') == {"b": 2}
    assert last_json_object("nothing\n") is None


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def environment_with(**variables: str) -> dict[str, str]:
    """This process's environment without its Ray settings, the virtual environment's programs first."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**inherited, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **variables}


@pytest.fixture(scope="module")
def head_url() -> Iterator[str]:
    """A head of our own on free ports, with token authentication; only its own processes are ended."""
    port, dashboard, agent = free_ports(3)
    temporary = tempfile.mkdtemp(prefix="mr", dir="/tmp")  # short: the path of a Unix socket has at most 107 bytes
    command = f"ray start --head --block --port={port} --dashboard-host=127.0.0.1 --dashboard-port={dashboard} --dashboard-agent-listen-port={agent}"
    command += f" --num-cpus=2 --object-store-memory=100000000 --disable-usage-stats --temp-dir={temporary}"
    with open(Path(temporary) / "start.log", "w") as log:
        head = subprocess.Popen(command.split(), env=environment_with(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN), stdout=log, stderr=log)
    url = f"http://127.0.0.1:{dashboard}"
    request = urllib.request.Request(f"{url}/api/version", headers={"Authorization": f"Bearer {TOKEN}"})
    try:
        for _ in range(120):
            assert head.poll() is None, (Path(temporary) / "start.log").read_text()
            try:
                urllib.request.urlopen(request, timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            raise AssertionError("the head did not start")
        yield url
    finally:
        processes = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
        head.terminate()
        _, alive = psutil.wait_procs(processes, timeout=10)
        for process in alive:
            process.kill()
        head.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def run_submit(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, **variables}
    environment = environment_with(PYTHONPATH=str(REPOSITORY / "src"), **variables)
    return subprocess.run([sys.executable, "-m", "jobs.submit", *arguments], cwd=root, env=environment, capture_output=True, text=True, timeout=120)


def last_line(finished: subprocess.CompletedProcess[str]) -> dict:
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_a_job_that_fails_once_is_tried_again_and_its_result_comes_back(repository: Path, head_url: str) -> None:
    done = run_submit(
        repository, "train", "run.yaml", "note=it's; $HOME", "--address", head_url, "--follow", "--retries", "2", "--shared-mount", RAY_ADDRESS="10.0.0.5:6379"
    )
    answer = last_line(done)
    assert (answer["status"], answer["exit_code"]) == ("SUCCEEDED", 0)
    assert answer["submission_id"].startswith("tiny-run-train-")
    assert answer["submission_id"].endswith("-2")
    result = answer["result"]
    assert result["overrides"] == ["note=it's; $HOME", f"storage={repository / 'out'}"]
    assert (result["attempts"], result["shared"]) == (2, "1")
    assert result["cwd"] != str(repository)
    assert "the first attempt dies" in done.stderr
    assert "trained, from the uploaded src" in done.stderr

    jobs = last_line(run_submit(repository, "list", "--address", head_url))["jobs"]
    states = {job["submission_id"][-2:]: job["status"] for job in jobs if job["submission_id"].startswith("tiny-run-train-")}
    assert states == {"-1": "FAILED", "-2": "SUCCEEDED"}


def test_a_users_mistake_in_the_job_is_not_tried_again(repository: Path, head_url: str) -> None:
    failed = run_submit(repository, "train", "run.yaml", "mistake=yes", "name=wrong", "--address", head_url, "--retries", "3")
    assert failed.returncode == 1
    assert "FAILED" in failed.stderr
    assert "exit code 2" in failed.stderr
    jobs = last_line(run_submit(repository, "list", "--address", head_url))["jobs"]
    assert [job["submission_id"][-2:] for job in jobs if job["submission_id"].startswith("wrong-")] == ["-1"]


@pytest.mark.parametrize("variables", [{"RAY_AUTH_TOKEN": "f" * 64}, {"RAY_AUTH_MODE": "disabled"}])
def test_a_cluster_that_refuses_us_says_what_to_set(repository: Path, head_url: str, variables: dict[str, str]) -> None:
    refused = run_submit(repository, "list", "--address", head_url, **variables)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH" in refused.stderr
    assert TOKEN not in refused.stderr


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
@pytest.mark.parametrize("path", ["/api/version", "/api/jobs/", "/nodes?view=summary", "/api/serve/applications/"])
def test_the_head_turns_strangers_away(head_url: str, path: str, headers: dict[str, str]) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(urllib.request.Request(head_url + path, headers=headers), timeout=10)
    assert refusal.value.code == (403 if headers else 401)


def test_an_address_where_nobody_listens_is_a_users_mistake(repository: Path) -> None:
    refused = run_submit(repository, "list", "--address", f"http://127.0.0.1:{free_ports(1)[0]}")
    assert refused.returncode == 2
    assert "nothing answers at" in refused.stderr
    assert "Traceback" not in refused.stderr
