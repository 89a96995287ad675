"""Every command answers --help at once, and a mistake with one line of three parts and exit code 2."""

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.convert import DATASETS
from jobs.entry import run_entry
from medley.data.convert import CONVERTERS
from medley.schema import InputError
from medley.training.faults import TrainingStoppedError

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [f"{path.parent.name}.{path.stem}" for folder in ("jobs", "tune") for path in sorted((ROOT / folder).glob("*.py")) if "__main__" in path.read_text()]
SLOW = {"deepspeed", "transformers", "torchvision", "torchaudio", "optuna", "fastapi"}
"""Libraries that reading a configuration must not wait for."""
HEAVY = SLOW | {"medley", "torch", "ray", "pyarrow", "pydantic"}
"""Libraries that --help must not wait for."""
HELP_SECONDS, MISTAKE_SECONDS = 3, 10
"""Bounds of processor time, which other work on the machine hardly changes: three and two times what a person should wait."""


def call(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """A command run from the repository's root, and the processor seconds it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command, environment = [sys.executable, *arguments], {**os.environ, "PYTHONPATH": "src"}
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{' '.join(arguments)}: {seconds:.2f} s of a processor, {time.monotonic() - started:.2f} s on the clock")
    return done, seconds


def imported(stderr: str) -> set[str]:
    """Packages that `-X importtime` lists."""
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in stderr.splitlines() if line.startswith("import time:")}


def test_the_verbs_are_found():
    assert {"jobs.convert", "jobs.prepare", "jobs.train", "jobs.evaluate", "jobs.bundle", "jobs.pipeline", "jobs.submit"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_comes_at_once_and_imports_nothing_heavy(command: str):
    done, seconds = call("-X", "importtime", "-m", command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"python -m {command}" in done.stdout
    assert not imported(done.stderr) & HEAVY
    assert seconds < HELP_SECONDS


@pytest.mark.parametrize("command", COMMANDS)
def test_a_call_without_arguments_is_refused_with_the_usage(command: str):
    done, _ = call("-m", command)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: python -m {command}")


def test_a_mistake_in_the_configuration_ends_with_two_in_three_parts_and_soon(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("name: a\ntrain:\n  epoch: 3\n")
    done, seconds = call("-X", "importtime", "-m", "jobs.train", str(tmp_path / "run.yaml"))
    assert (done.returncode, done.stdout) == (2, "")
    message = [line for line in done.stderr.splitlines() if not line.startswith("import time:")][-1]
    assert re.fullmatch(r"error: '.*run\.yaml' line 3: unknown setting 'train\.epoch'; expected one of .*epochs.*; did you mean 'epochs'\?", message)
    assert "Traceback" not in done.stderr
    assert not imported(done.stderr) & SLOW
    assert seconds < MISTAKE_SECONDS


def test_the_last_line_of_the_output_is_the_result_as_json(tmp_path: Path):
    done, _ = call("-m", "jobs.convert", "synthetic", "-", str(tmp_path / "tables"), "num_items=10", "num_users=10", "image_side_pixels=16", "clip_seconds=0.1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["tables"] == str(tmp_path / "tables")
    assert (tmp_path / "tables" / "manifest.json").is_file()


def end_of(main: Callable[[], dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    """Exit code, standard output and standard error of an entry point."""
    with pytest.raises(SystemExit) as caught:
        run_entry(main)
    output = capsys.readouterr()
    return caught.value.code, output.out, output.err


def failing(error: BaseException) -> Callable[[], dict[str, Any]]:
    def main() -> dict[str, Any]:
        raise error

    return main


def test_success_ends_with_zero_and_one_line(capsys: pytest.CaptureFixture[str]):
    assert end_of(lambda: {"a": 1}, capsys) == (0, '{"a": 1}\n', "")


def test_a_users_mistake_ends_with_two_and_its_message(capsys: pytest.CaptureFixture[str]):
    assert end_of(failing(InputError("got", "wanted", "do this")), capsys) == (2, "", "error: got; expected wanted; do this\n")


def test_a_mistake_found_by_a_task_of_ray_is_the_users_too(capsys: pytest.CaptureFixture[str]):
    from ray.exceptions import RayTaskError

    wrapped = RayTaskError("task", "Traceback of the worker", InputError("got", "wanted", "do this")).as_instanceof_cause()
    assert end_of(failing(wrapped), capsys) == (2, "", "error: got; expected wanted; do this\n")


def test_a_failure_that_is_not_the_users_ends_with_one_and_a_traceback(capsys: pytest.CaptureFixture[str]):
    code, out, err = end_of(failing(ZeroDivisionError("division by zero")), capsys)
    assert (code, out, err.splitlines()[-1]) == (1, "", "ZeroDivisionError: division by zero")


@pytest.mark.parametrize(("kind", "code"), [("workers_lost", 3), ("not_finite", 4), ("storage", 5), ("disk_full", 5), ("hung", 6), ("preempted", 75)])
def test_training_that_was_given_up_says_why_by_its_code(kind: str, code: int, capsys: pytest.CaptureFixture[str]):
    assert end_of(failing(TrainingStoppedError(kind, "training failed 3 times")), capsys) == (code, "", "error: training failed 3 times\n")


def test_an_interruption_ends_with_130(capsys: pytest.CaptureFixture[str]):
    assert end_of(failing(KeyboardInterrupt()), capsys) == (130, "", "interrupted\n")


def test_every_converter_has_its_command():
    assert set(DATASETS) == set(CONVERTERS)
