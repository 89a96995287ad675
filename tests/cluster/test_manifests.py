"""The files that describe a cluster: valid against KubeRay's schema, and as closed as reliability demands."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

REPOSITORY = Path(__file__).resolve().parents[2]
SCHEMAS = REPOSITORY.parent / "shared" / "schemas" / "kuberay"


@pytest.fixture(scope="module")
def rayjob() -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(REPOSITORY / "cluster" / "kuberay" / "rayjob.yaml")


def pod_specs(rayjob: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = rayjob["spec"]["rayClusterSpec"]
    yield rayjob["spec"]["submitterPodTemplate"]["spec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


def closed(schema: Any) -> Any:
    """The schema with unknown keys refused, as the API server does with strict validation."""
    if isinstance(schema, list):
        return [closed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason="KubeRay's schemas are not beside the repository")
def test_rayjob_is_valid_and_has_no_unknown_key(rayjob: dict[str, Any]) -> None:
    schema = closed(json.loads((SCHEMAS / "rayjobs.v1.json").read_text()))
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(rayjob, schema)
    rayjob = {**rayjob, "spec": {**rayjob["spec"], "backofLimit": 1}}
    with pytest.raises(jsonschema.ValidationError, match="backofLimit"):
        jsonschema.validate(rayjob, schema)


def test_every_pod_runs_as_a_plain_user_on_a_read_only_root(rayjob: dict[str, Any]) -> None:
    for pod in pod_specs(rayjob):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all("hostPath" not in volume for volume in pod["volumes"])
        for container in pod["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
            assert not container["image"].endswith(":latest")
    assert rayjob["spec"]["rayClusterSpec"]["autoscalerOptions"]["securityContext"]["allowPrivilegeEscalation"] is False


def test_every_container_has_requests_and_limits_and_every_scratch_volume_a_size(rayjob: dict[str, Any]) -> None:
    for pod in pod_specs(rayjob):
        for container in pod["containers"]:
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= container["resources"][kind].keys()
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert all("sizeLimit" in volume["emptyDir"] for volume in pod["volumes"])


def test_ray_pods_keep_the_object_store_in_memory(rayjob: dict[str, Any]) -> None:
    for pod in list(pod_specs(rayjob))[1:]:
        paths = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        volume = next(volume for volume in pod["volumes"] if volume["name"] == paths["/dev/shm"])
        assert volume["emptyDir"]["medium"] == "Memory"


def test_rayjob_demands_a_token_keeps_work_off_the_head_and_cleans_up_one_way(rayjob: dict[str, Any]) -> None:
    spec, cluster = rayjob["spec"], rayjob["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["enableInTreeAutoscaling"] is True
    assert "deletionStrategy" not in spec
    assert spec["shutdownAfterJobFinishes"] is True
    assert all(group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] for group in cluster["workerGroupSpecs"])


def test_no_manifest_holds_a_secret() -> None:
    for path in (REPOSITORY / "cluster").rglob("*"):
        if path.suffix == ".yaml" or path.name == "Dockerfile":
            text = path.read_text()
            assert not re.search(r"(?i)(token|password|secret_?(access_?)?key)\s*[:=]\s*['\"]?[A-Za-z0-9/+]{16,}", text), path


def test_image_runs_as_the_user_the_manifests_name_and_demands_a_token() -> None:
    lines = (REPOSITORY / "cluster" / "Dockerfile").read_text().splitlines()
    assert lines[-1] == "USER 10001"
    assert any("RAY_AUTH_MODE=token" in line for line in lines)


def test_ray_has_the_same_version_everywhere(rayjob: dict[str, Any]) -> None:
    pinned = re.search(r'"ray\[[a-z,]+\]==([0-9.]+)"', (REPOSITORY / "pyproject.toml").read_text())
    assert pinned
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]
