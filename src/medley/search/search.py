"""search(run, space): the same function for tune.search, pipelines and Python.

Steps: 1. the space is checked against the run; 2. a short base run trains the encoders end to end; 3. their vectors of the whole catalogue
are cached; 4. light trials train fusion, users and head on them, Optuna's TPE proposes, ASHA stops; 5. the winner's light training is done
once more and its weights are kept beside the base run's encoders; 6. its configuration is written, set to start from these weights.
Only the train and valid splits are read.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save

from medley.config import Run, dump_run, override_run
from medley.data.prepared import PreparedData
from medley.manifest import absolute_uri, find_manifest, fingerprint, join_uri, read_json, remove_folder, write_bytes, write_manifest
from medley.schema import InputError
from medley.search.features import encode_for_base_run, encode_for_trials
from medley.search.report import write_search
from medley.search.spaces import Space, read_space
from medley.search.trials import TrialInputs, TrialRecord, run_trials, train_light
from medley.training.assemble import check_model
from medley.training.checkpoint import WEIGHTS_FILE
from medley.training.run import find_prepared, fit, run_fingerprint
from medley.training.start import read_weights_of

logger = logging.getLogger(__name__)

SEARCH_KIND = "search"


def search(run: Run, space_uri: str, *, resume: bool = False, fresh: bool = False) -> dict[str, Any]:
    """Find the best configuration in a space, or find the search finished; needs a Ray session.

    resume: go on with the trials of an interrupted search of the same settings. fresh: remove what an earlier search of this name left.
    Returns where the result is, its metric and times, and `best_run`: the winner as a Run of the same name.
    """
    started = time.monotonic()
    if run.train.kind != "gradient":
        raise InputError(f"train.kind is {run.train.kind}", "gradient: trials train networks", "search another configuration, or leave search.space out")
    data = find_prepared(run)
    check_model(run.model, run.loss, data)
    space = read_space(absolute_uri(space_uri), run)
    for corner in space.corners(run):
        check_model(corner.model, corner.loss, data)
    identity = search_fingerprint(run, space, data)
    if fresh:
        remove_folder(run.search_uri)
    is_reused = _is_finished(run, identity)
    if not is_reused:
        _search(run, space, data, identity, resume)
    report = read_json(join_uri(run.search_uri, "report.json"))
    return {
        "search": run.search_uri,
        "fingerprint": identity,
        "reused": is_reused,
        "best_config": join_uri(run.search_uri, "best.yaml"),
        "best_metric": report["best"]["value"],
        "as_configured_metric": report["as_configured"] and report["as_configured"]["value"],
        "parameters": report["best"]["parameters"],
        "num_trials": report["num_trials"],
        "seconds": round(time.monotonic() - started, 1),
        "seconds_per_trial": report["seconds"]["per_trial"],
        "overhead_share": report["seconds"]["overhead_share"],
        "best_run": _winner(run, report["best"]["parameters"]),
    }


def search_fingerprint(run: Run, space: Space, data: PreparedData) -> str:
    """What decides the outcome: the run, the space and the size of the search; not how many trials run at a time."""
    dimensions = [[dimension.key, dimension.kind, list(dimension.values)] for dimension in space.dimensions]
    sizes = {key: value for key, value in dump_run(run)["search"].items() if key not in ("space", "concurrent_trials")}
    return fingerprint(SEARCH_KIND, run_fingerprint(run, data), dimensions, sizes)


def _is_finished(run: Run, identity: str) -> bool:
    manifest = find_manifest(run.search_uri)
    if manifest is not None and manifest["fingerprint"] != identity:
        raise InputError(
            f"search '{run.name}' in '{run.storage}' was made with other settings, another space or other data",
            "the same ones to reuse it",
            "choose another name=, or start anew with --fresh",
        )
    return manifest is not None


def _search(run: Run, space: Space, data: PreparedData, identity: str, resume: bool) -> None:
    """Base run, cache, trials, files; the manifest last."""
    base = _base_of(run)
    if base is not None:
        logger.info("base run %s | %d epochs", base.name, base.gradient.epochs)
        encode_for_base_run(base, data)
        fit(base)
    vectors = encode_for_trials(run, base.run_uri if base is not None else None, data) if run.model.encoders else None
    folder = join_uri(run.search_uri, "tune")
    if not resume:
        remove_folder(folder)
    started = time.time()
    inputs = TrialInputs.gather(run, space, data.uri, vectors)
    records = run_trials(run, space, inputs, folder, identity, resume=resume)
    seconds = _times(records, started, time.time() - started, run.search.concurrent_trials)
    best = _best(records)
    if base is not None:
        _write_start(override_run(run, best.parameters), base, inputs)
    write_search(run.search_uri, _winner(run, best.parameters), records, space, run.train.metric, seconds)
    remove_folder(folder)
    logger.info(
        "search | best %s %.4f, trial %d of %d | %.1f s, %.0f %% of it not in trials",
        run.train.metric, best.best, best.trial, len(records), seconds["all_trials"], 100 * seconds["overhead_share"],
    )  # fmt: skip
    write_manifest(
        run.search_uri,
        SEARCH_KIND,
        identity,
        parents={"prepared": data.identity},
        counts={"num_trials": len(records)},
        config=dump_run(run) | {"space": {dimension.key: {dimension.kind: list(dimension.values)} for dimension in space.dimensions}},
    )


def _base_of(run: Run) -> Run | None:
    """The run that trains the encoders before the search; None where they have nothing to learn."""
    return override_run(run, {"name": f"{run.name}-base", "train.epochs": run.search.base_epochs}) if has_trained_encoders(run) else None


def has_trained_encoders(run: Run) -> bool:
    """Whether any encoder has something to learn."""
    return any(encoder.train != "frozen" and encoder.kind != "features" for encoder in run.model.encoders.values())


def _winner(run: Run, parameters: Mapping[str, Any]) -> Run:
    """The configuration with the winner's settings, its search done; where encoders were trained it starts from the search's weights."""
    start = {"train.start_from": run.search_uri} if _base_of(run) is not None else {}
    return override_run(run, {**parameters, **start, "search.space": None})


def _write_start(winner: Run, base: Run, inputs: TrialInputs) -> None:
    """searches/NAME/weights.safetensors: the base run's encoders, and what the winner learned on their vectors."""
    encoders = {name: value for name, value in read_weights_of(base.run_uri).items() if name.startswith("encoders.")}
    write_bytes(join_uri(winner.search_uri, WEIGHTS_FILE), save(encoders | train_light(winner, inputs)))


def _best(records: list[TrialRecord]) -> TrialRecord:
    whole = [record for record in records if record.is_whole]
    if not whole:
        raise RuntimeError(f"every trial failed; the first with: {records[0].error}")
    return max(whole, key=lambda record: (record.best, -record.trial))


def _times(records: list[TrialRecord], started: float, wall_seconds: float, concurrent_trials: int) -> dict[str, float]:
    """Wall time of the trials since `started`, and the share of it that the places for trials (concurrent ones) spent outside of trials."""
    here = [record for record in records if record.started >= started]
    num_places, inside = max(1, min(concurrent_trials, len(here))), sum(record.seconds for record in here)
    return {
        "all_trials": round(wall_seconds, 2),
        "per_trial": round(wall_seconds / max(1, len(here)), 3),
        "inside_trials": round(inside, 2),
        "overhead_share": round(1 - inside / (num_places * wall_seconds), 3),
    }
