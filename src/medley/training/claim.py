"""A run folder belongs to one configuration: made ours, found finished, or refused."""

import logging
from typing import Any

from medley.manifest import exists, find_manifest, join_uri, read_json, write_json
from medley.schema import InputError
from medley.training.config import HOLDING_FIELDS

logger = logging.getLogger(__name__)

FOLD_IN_FIELDS = ("given_share", "fold_in_unseen_weight", "fold_in_regularization")
"""Settings of `evaluate` that move the validation metric; where nothing is given to fold in, only the first."""


def deciding_values(values: dict[str, Any]) -> dict[str, Any]:
    """Of a Run's plain values those that decide what is trained and which epoch is the best."""
    training = {key: value for key, value in values["train"].items() if key not in HOLDING_FIELDS}
    if training["kind"] == "gradient" and values["loss"].get("across_ranks"):
        training["workers"] = values["train"]["workers"]
    kept = ("data", "model", "loss", "seed") if training["kind"] == "gradient" else ("data", "seed")
    return {
        **{key: values[key] for key in kept},
        "train": training,
        "evaluate": {key: values["evaluate"][key] for key in (FOLD_IN_FIELDS if values["evaluate"]["given_share"] else FOLD_IN_FIELDS[:1])},
    }


def differences(found: Any, wanted: Any, prefix: str = "") -> set[str]:
    """Dotted keys whose values differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        parts = (differences(found.get(key), wanted.get(key), f"{prefix}.{key}" if prefix else key) for key in {*found, *wanted})
        return set().union(*parts)
    return set() if found == wanted else {prefix}


def claim(run_uri: str, identity: str, values: dict[str, Any]) -> dict[str, Any] | None:
    """Make the run folder ours; returns its manifest when the same run is finished there. Another run of this name is refused.

    values: the Run as plain values.
    """
    manifest, config_uri = find_manifest(run_uri), join_uri(run_uri, "config.json")
    if not exists(config_uri):
        write_json(config_uri, {"fingerprint": identity, "run": values})
        return None
    found = read_json(config_uri)
    if found["fingerprint"] != identity:
        before = found["run"]
        # Both: settings that a changed given_share brings into play need not have changed themselves.
        changed = sorted(differences(deciding_values(before), deciding_values(values)) & differences(before, values))
        raise InputError(
            f"run '{values['name']}' in '{values['storage']}' was made with other {', '.join(changed[:6]) or 'data'}",
            "the same settings and data to resume it",
            "choose another name=, or start anew with --fresh",
        )
    logger.info("run %s | %s", values["name"], "is finished" if manifest else "resumes")
    return manifest
