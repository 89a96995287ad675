"""The check-up of a run: what it finds, what it survives, how it ends. No Ray but where one is joined."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medley.cluster.doctor import check
from medley.cluster.surroundings import Node, check_authentication, check_resources, check_storage, check_versions, this_machine
from medley.config import Run, make_run
from medley.data.findings import Finding

ROOT = Path(__file__).resolve().parents[2]
MACHINE = Node(8, 0, 16e9)


def make(storage: Path, **parts: Any) -> Run:
    values = {
        "storage": str(storage),
        "name": "checked",
        "model": {"dimension": 8, "encoders": {"text": {"kind": "subword", "vocabulary_size": 100, "dimension": 6}}},
        "train": {"micro_batch_size": 16, "num_micro_batches": 2},
    }
    return make_run(values | parts, "test")


def levels(findings: list[Finding], pattern: str) -> list[str]:
    """Levels of the findings that speak of something."""
    return [finding.level for finding in findings if re.search(pattern, finding.what)]


def test_a_run_with_everything_in_place_has_no_error(tiny_prepared: str, tiny_tables: str, tmp_path: Path) -> None:
    checkup = check(make(tmp_path, inputs={"prepared": tiny_prepared, "tables": tiny_tables}))
    assert checkup.exit_code == 0, checkup.text()
    for subject in ("tables", "storage", "versions|tested", "resources", "memory: stage 2", "disk"):
        assert levels(checkup.findings, subject), subject
    assert checkup.prepared is not None
    assert (checkup.prepared.num_items, checkup.prepared.num_users) == (120, 60)
    assert checkup.memory is not None
    assert set(checkup.memory.measured_activations) == {4, 16}
    assert [(entry.stage, entry.offload) for entry in checkup.memory.estimates][:4] == [(stage, "none") for stage in range(4)]
    assert checkup.page == str(tmp_path / "report" / "data.html")
    assert Path(checkup.page).read_text().startswith("<!doctype html>")
    # What is printed for programs is JSON, NaN not among it; what was written for the round trip is gone.
    json.loads(json.dumps(checkup.figures(), allow_nan=False))
    assert os.listdir(tmp_path) == ["report"]
    text = checkup.text()
    assert "120 | " in text
    assert "<- configured" in text


def test_an_encoder_whose_vectors_are_cached_takes_no_memory_in_training(tiny_prepared: str, tiny_tables: str, tmp_path: Path) -> None:
    def size(**more: Any) -> int:
        encoder = {"kind": "resnet", "column": "image", "side_pixels": 16, "width": 8, "train": "frozen", **more}
        run = make(tmp_path, inputs={"prepared": tiny_prepared, "tables": tiny_tables}, model={"dimension": 8, "encoders": {"image": encoder}})
        memory = check(run).memory
        assert memory is not None
        return memory.size.num_parameters

    assert size(cache=True) < size(cache=False) - 10_000


def test_training_in_closed_form_has_no_ranks_to_estimate(tiny_prepared: str, tiny_tables: str, tmp_path: Path) -> None:
    checkup = check(make(tmp_path, inputs={"prepared": tiny_prepared, "tables": tiny_tables}, train={"kind": "ease"}))
    assert checkup.exit_code == 0, checkup.text()
    assert levels(checkup.findings, "kind 'ease' has no ranks") == ["ok"]


def test_before_anything_is_prepared_the_tables_are_examined_and_the_next_step_is_named(tiny_tables: str, tmp_path: Path) -> None:
    checkup = check(make(tmp_path, inputs={"tables": tiny_tables}))
    assert checkup.exit_code == 0
    assert checkup.tables is not None
    assert checkup.tables.tables["items"].num_rows == 120
    assert checkup.prepared is None
    assert any(finding.remedy == "run jobs.prepare with this configuration" for finding in checkup.findings)
    assert levels(checkup.findings, "memory and disk were not estimated") == ["warning"]


def test_no_tables_at_all_is_an_error_and_a_warning_where_a_converter_would_write_them(tmp_path: Path) -> None:
    assert check(make(tmp_path)).exit_code == 2
    checkup = check(make(tmp_path, convert={"kind": "synthetic"}))
    assert levels(checkup.findings, "there are no tables") == ["warning"]


def test_broken_tables_an_unknown_column_and_too_many_workers_are_all_named_at_once(tmp_path: Path) -> None:
    for name in ("items", "interactions"):
        (tmp_path / "tables" / name).mkdir(parents=True)
    pq.write_table(pa.table({"item_id": ["a", "b"], "text": ["x", None]}), tmp_path / "tables" / "items" / "0.parquet")
    (tmp_path / "tables" / "interactions" / "0.parquet").write_bytes(b"PAR1")
    train = {"workers": 50, "num_micro_batches": 51}
    encoders = {"image": {"kind": "resnet", "side_pixels": 16, "width": 8}}
    checkup = check(make(tmp_path, train=train, model={"encoders": encoders}))
    assert checkup.exit_code == 2
    assert levels(checkup.findings, "1 of 1 shards are broken: .*cut after 4 bytes") == ["error"]
    assert levels(checkup.findings, "encoders.image reads column 'image', the items have item_id, text") == ["error"]
    assert levels(checkup.findings, "train.workers=50 of 1 CPU each") == ["error"]
    assert levels(checkup.findings, "train.workers=50 does not divide train.num_micro_batches=51") == ["error"]
    assert "Traceback" not in checkup.text()


def test_a_mistake_in_the_model_does_not_hide_the_data(tiny_prepared: str, tiny_tables: str, tmp_path: Path) -> None:
    encoders = {"tags": {"kind": "tags", "column": "genres"}}
    checkup = check(make(tmp_path, inputs={"prepared": tiny_prepared, "tables": tiny_tables}, model={"encoders": encoders}))
    assert levels(checkup.findings, "reads column 'genres'") == ["error"]
    assert checkup.exit_code == 2
    assert checkup.prepared is not None


def test_tables_that_were_changed_after_their_manifest_are_an_error(tiny_tables: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_tables, tmp_path / "tables")
    place = tmp_path / "tables" / "interactions" / "part-00000.parquet"
    pq.write_table(pq.read_table(place).slice(1), place)
    checkup = check(make(tmp_path))
    assert levels(checkup.findings, "interactions/part-00000.parquet' in .* has SHA-256") == ["error"]
    assert checkup.exit_code == 2


def test_a_check_that_breaks_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch, tiny_tables: str, tmp_path: Path) -> None:
    def broken() -> list[Finding]:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("medley.cluster.doctor.check_versions", broken)
    checkup = check(make(tmp_path, inputs={"tables": tiny_tables}))
    assert checkup.exit_code == 1
    assert levels(checkup.findings, "check of versions failed .ZeroDivisionError: by zero") == ["error"]
    assert levels(checkup.findings, "resources") == ["ok"]


def test_workers_that_find_no_place_are_refused_with_what_is_missing() -> None:
    assert check_resources([MACHINE], 2, 4, use_gpu=False)[0].level == "ok"
    (finding,) = check_resources([MACHINE, MACHINE], 4, 5, use_gpu=False)
    assert finding.what == "train.workers=4 of 5 CPU each; 2 machines with 16 CPUs and 0 GPUs have room for 2: 2 more would be needed"
    (finding,) = check_resources([MACHINE], 1, 1, use_gpu=True)
    assert finding.level == "error"
    assert finding.remedy.startswith("there is no GPU at all")
    assert check_resources([Node(8, 2, 1e9)], 2, 1, use_gpu=True)[0].level == "ok"
    assert check_resources([], 1, 1, use_gpu=False)[0].level == "error"


def test_this_machine_has_at_least_eight_logical_processors_and_some_memory() -> None:
    (node,) = this_machine()
    assert node.num_cpus >= 8
    assert node.memory_bytes > 1e8


def test_storage_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    assert check_storage(str(tmp_path / "new"))[0].level == "ok"
    assert os.listdir(tmp_path / "new") == []
    (tmp_path / "file").write_text("")
    (finding,) = check_storage(str(tmp_path / "file" / "inside"))
    assert (finding.level, finding.is_failure) == ("error", True)
    (finding,) = check_storage("nothing://bucket")
    assert finding.level == "error"


def test_versions_other_than_the_tested_ones_are_named_core_packages_first(tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("# the tested set\nattrs==0.0.1\nray==1.0.0\nnot-installed==1.0\n")
    (finding,) = check_versions(constraints)
    assert finding.level == "warning"
    assert re.fullmatch(r"other versions than were tested: ray \S+ \(tested: 1\.0\.0\), attrs \S+ \(tested: 0\.0\.1\)", finding.what)
    assert check_versions(tmp_path / "absent.txt")[0].level == "warning"


def test_authentication_that_is_off_or_whose_token_lies_open_is_a_warning(tmp_path: Path) -> None:
    assert check_authentication(None, {})[0].level == "ok"
    assert check_authentication(None, {"RAY_AUTH_MODE": "disabled"})[0].level == "warning"
    assert check_authentication("head:6379", {})[0].level == "warning"
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o644)
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    (finding,) = check_authentication("head:6379", environment)
    assert (finding.level, finding.remedy) == ("warning", f"chmod 600 {token}")
    token.chmod(0o600)
    assert check_authentication("head:6379", environment)[0].level == "ok"
    assert check_authentication("head:6379", environment | {"RAY_AUTH_TOKEN_PATH": "/nowhere"})[0].level == "error"


def test_in_a_session_the_machines_are_those_of_the_cluster(ray_session: None, tiny_tables: str, tmp_path: Path) -> None:
    run = make(tmp_path, inputs={"tables": tiny_tables}, train={"workers": 9, "num_micro_batches": 9})
    assert levels(check(run, "the cluster").findings, "train.workers=9 of 1 CPU each; 1 machine with 8 CPUs") == ["error"]


def test_the_verb_prints_one_line_of_json_and_ends_with_two_where_something_must_be_changed(tiny_tables: str, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"name: checked\nstorage: {tmp_path / 'out'}\ninputs: {{tables: {tiny_tables}}}\n")
    command = [sys.executable, "-m", "jobs.doctor", str(config), "train.use_gpu=true"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, cwd=ROOT, env={**environment, "PYTHONPATH": "src"}, capture_output=True, text=True, timeout=120)
    result = json.loads(done.stdout)
    assert "Traceback" not in done.stderr
    if result["num_errors"]:  # no GPU here
        assert done.returncode == 2
        assert "there is no GPU at all" in done.stderr
    assert (tmp_path / "out" / "report" / "data.html").is_file()
