"""ablate(run): what each modality and each fusion is worth on a data set: the table fusion × modality subset, with intervals.

Steps: 1. the run is trained, or found finished, where its encoders learn; 2. their vectors of the whole catalogue come out of the feature cache;
3. for every cell of the table and every seed fusion, users and head are trained on the vectors of that subset, as a trial of a search is, the best
epoch chosen on valid; 4. each cell is measured on `ablation.split`, and compared user by user with the whole model of the same seeds.
The encoders were trained together: a cell says what is lost without a modality's vector, not what an encoder alone would have learned.

ablations/NAME/report.json   cells, references, settings      report.html   the same as a page      manifest.json
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch

from medley.config import Run, dump_run, make_run, override_run
from medley.data.memory import CatalogueVectors
from medley.data.prepared import PreparedData
from medley.manifest import find_manifest, fingerprint, join_uri, read_json, remove_folder, staged_folder, write_bytes, write_json
from medley.schema import InputError
from medley.search.ablation_page import ablation_page
from medley.search.features import encode_for_base_run, encode_for_trials
from medley.search.search import has_trained_encoders
from medley.search.spaces import Space
from medley.search.trials import TrialInputs, assemble_trial
from medley.training.assemble import check_model
from medley.training.baselines import oracle_scorer, popularity_scorer
from medley.training.checkpoint import Progress
from medley.training.config import GradientTrainConfig
from medley.training.evaluate import EvaluateConfig, Questions, VectorRanker, make_questions, rank_users
from medley.training.loop import train_epoch
from medley.training.measures import Plain, compare, estimates_of_groups
from medley.training.run import find_prepared, fit, run_fingerprint
from medley.training.slices import item_groups

logger = logging.getLogger(__name__)

ABLATION_KIND = "ablation"
IDS = "ids"
"""what the free item vectors are called beside the modalities"""

Values = dict[str, dict[str, np.ndarray]]
"""item group → metric → one value per user"""


@dataclass(frozen=True)
class Cell:
    """One place of the table. parts: modalities, and IDS for the free item vectors."""

    fusion: str
    parts: tuple[str, ...]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.fusion}: {' + '.join(self.parts)}"

    def run_of(self, run: Run, seed: int) -> Run:
        """The configuration of this cell."""
        encoders = {name: encoder for name, encoder in dump_run(run)["model"]["encoders"].items() if name in self.parts}
        changes: dict[str, Any] = {"seed": seed, "model.encoders": encoders}
        if self.fusion != run.model.fusion.kind:
            changes["model.fusion"] = {"kind": self.fusion}
        if IDS not in self.parts:
            changes |= {"model.item_id": None, "model.propagation": None}
        elif not any(encoder["cache"] for encoder in encoders.values()) and run.model.item_id is not None and run.model.item_id.neighbours is not None:
            changes["model.item_id.neighbours"] = None  # the graph is one of content
        return override_run(run, changes, "ablation")


def ablate(run: Run, *, fresh: bool = False) -> dict[str, Any]:
    """Make the table, or find it made; needs a Ray session. Returns where it is and the content of report.json.

    fresh: remove what an earlier ablation of this name left.
    """
    started = time.monotonic()
    data = find_prepared(run)
    check_model(run.model, run.loss, data)
    cells = make_cells(run)
    for cell in cells:
        check_model(cell.run_of(run, run.seed).model, run.loss, data)
    uri = join_uri(run.storage, "ablations", run.name)
    settings = dump_run(run)["ablation"]
    identity = fingerprint(ABLATION_KIND, run_fingerprint(run, data), {name: value for name, value in settings.items() if name != "concurrent"})
    if fresh:
        remove_folder(uri)
    manifest = find_manifest(uri)
    if manifest is not None and manifest["fingerprint"] != identity:
        raise InputError(
            f"ablation '{run.name}' in '{run.storage}' was made with other settings or other data",
            "the same ones to reuse it",
            "choose another name=, or start anew with --fresh",
        )
    if manifest is None:
        report = _ablate(run, data, cells)
        with staged_folder(uri) as stage:
            write_json(stage.path("report.json"), report)
            write_bytes(stage.path("report.html"), ablation_page(run.name, report).encode())
            stage.commit(ABLATION_KIND, identity, parents={"prepared": data.identity}, counts={"num_cells": len(cells)}, config=dump_run(run))
    return {"ablation": uri, "reused": manifest is not None, "seconds": round(time.monotonic() - started, 1), **read_json(join_uri(uri, "report.json"))}


def make_cells(run: Run) -> list[Cell]:
    """The whole model first; with the run's own fusion every single part, ids with every single modality, and everything without one part;
    with further fusions only subsets of two modalities or more, where there is something to fuse. Without encoders: an InputError."""
    modalities, ids = tuple(sorted(run.model.encoders)), (IDS,) if run.model.item_id is not None else ()
    if run.train.kind != "gradient":
        raise InputError(f"train.kind is {run.train.kind}", "gradient: other kinds fuse nothing", "choose a configuration that trains a network")
    if not modalities:
        raise InputError("model.encoders is empty", "at least one modality to leave out", "add model.encoders")
    everything = (*modalities, *ids)
    subsets = [everything, *((part,) for part in everything)]
    subsets += [(name, *ids) for name in modalities] if ids else []
    subsets += [tuple(part for part in everything if part != left_out) for left_out in everything]
    own = run.model.fusion.kind
    cells = [Cell(own, parts) for parts in subsets]
    cells += [Cell(kind, parts) for kind in run.ablation.fusions for parts in subsets if len(set(parts) - {IDS}) > 1]
    return list(dict.fromkeys(cell for cell in cells if cell.parts))


def _ablate(run: Run, data: PreparedData, cells: Sequence[Cell]) -> Plain:
    weights_of = None
    if has_trained_encoders(run):
        encode_for_base_run(run, data)
        fit(run)
        weights_of = run.run_uri
    vectors = encode_for_trials(run, weights_of, data)
    assert isinstance(run.train, GradientTrainConfig)
    short = override_run(run, {"search.trial_epochs": run.ablation.epochs or run.train.epochs, "search.grace_epochs": 1})
    inputs = TrialInputs.gather(short, Space((), {}), data.uri, vectors)
    questions = make_questions(data, run.ablation.split, run.evaluate)
    groups = {name: items for name, items in item_groups(data.train_count_N, {}).items() if name in ("all", "warm", "cold")}
    values = train_cells(short, cells, inputs, questions, groups)
    return {
        "split": run.ablation.split,
        "metric": f"ndcg@{run.evaluate.k}",
        "num_users": len(questions.users),
        "seeds": list(run.ablation.seeds),
        "cells": _measured(cells, values, run),
        "references": _references(run, data, questions, groups),
    }


def train_cells(run: Run, cells: Sequence[Cell], inputs: TrialInputs, questions: Questions, groups: Mapping[str, np.ndarray]) -> dict[tuple[Cell, int], Values]:
    """Every cell with every seed, in Ray tasks. run.search.trial_epochs: how long each is trained."""
    task: Any = ray.remote(num_cpus=1, max_retries=3)(train_cell)
    inputs_ref, questions_ref, groups_ref = ray.put(inputs), ray.put(questions), ray.put(dict(groups))
    keys = [(cell, seed) for seed in run.ablation.seeds for cell in cells]
    waiting = list(keys)
    running: dict[Any, tuple[Cell, int]] = {}
    values: dict[tuple[Cell, int], Values] = {}
    while waiting or running:
        while waiting and len(running) < run.ablation.concurrent:
            cell, seed = waiting.pop(0)
            running[task.remote(dump_run(cell.run_of(run, seed)), cell.parts, inputs_ref, questions_ref, groups_ref)] = (cell, seed)
        (done,), _ = ray.wait(list(running))
        key = running.pop(done)
        values[key] = ray.get(done)
        metric = f"ndcg@{run.evaluate.k}"
        logger.info("ablation %d/%d | %s, seed %d | %s %.4f", len(values), len(keys), key[0].name, key[1], metric, np.nanmean(values[key]["all"][metric]))
    return values


def train_cell(settings: Mapping[str, Any], parts: Sequence[str], inputs: TrialInputs, questions: Questions, groups: Mapping[str, np.ndarray]) -> Values:
    """Train one configuration (as plain values) on the vectors of its modalities; its values at the middle cut."""
    torch.set_num_threads(1)
    run = make_run(settings, "ablation")
    vectors = inputs.vectors or CatalogueVectors({}, {})
    kept = [name for name in vectors.vectors_ND if name in parts]
    own = CatalogueVectors({name: vectors.vectors_ND[name] for name in kept}, {name: vectors.present_mask_N[name] for name in kept})
    training, progress, scorer = assemble_trial(run, replace(inputs, vectors=own)), Progress(), None
    while progress.epoch < training.config.epochs:
        newest = train_epoch(training, progress)
        if progress.best_epoch == progress.epoch - 1:
            scorer = newest
    assert scorer is not None
    return _values(VectorRanker.of(scorer, questions, run.evaluate), questions, groups, run.evaluate)


def _values(ranker: VectorRanker, questions: Questions, groups: Mapping[str, np.ndarray], config: EvaluateConfig) -> Values:
    return {name: ranked.metrics((config.k,)) for name, ranked in rank_users(ranker, questions, groups, config.k).items()}


def _measured(cells: Sequence[Cell], values: Mapping[tuple[Cell, int], Values], run: Run) -> list[Plain]:
    """Each cell's means over seeds with intervals over users, what it lacks to the whole model, and the means of each seed."""
    mean = {cell: _mean_over_seeds([values[cell, seed] for seed in run.ablation.seeds]) for cell in cells}
    whole, metric = cells[0], f"ndcg@{run.evaluate.k}"
    return [
        {
            "fusion": cell.fusion,
            "parts": list(cell.parts),
            "relevance": estimates_of_groups(mean[cell], run.evaluate, run.seed),
            "minus_whole": compare(mean[cell], mean[whole], run.evaluate, run.seed),
            "by_seed": {group: [_mean(values[cell, seed][group][metric]) for seed in run.ablation.seeds] for group in mean[cell]},
        }
        for cell in cells
    ]


def _mean_over_seeds(parts: Sequence[Values]) -> Values:
    return {group: {metric: np.mean([part[group][metric] for part in parts], axis=0) for metric in by_metric} for group, by_metric in parts[0].items()}


def _mean(values_V: np.ndarray) -> float | None:
    return float(np.nanmean(values_V)) if np.isfinite(values_V).any() else None


def _references(run: Run, data: PreparedData, questions: Questions, groups: Mapping[str, np.ndarray]) -> Plain:
    """Popularity, and the oracle where there is one, on the same questions."""
    oracle = oracle_scorer(run.tables_uri, data)
    scorers = {"popularity": popularity_scorer(data)} | ({"oracle": oracle} if oracle is not None else {})
    rankers = {name: VectorRanker.of(scorer, questions, run.evaluate) for name, scorer in scorers.items()}
    return {name: estimates_of_groups(_values(ranker, questions, groups, run.evaluate), run.evaluate, run.seed) for name, ranker in rankers.items()}


def fused_minus_best_part(report: Mapping[str, Any], group: str) -> Iterator[float]:
    """For each seed, the whole model's mean minus the best of the cells with a single part: what fusing gained."""
    whole, singles = report["cells"][0], [cell for cell in report["cells"] if len(cell["parts"]) == 1]
    for place, own in enumerate(whole["by_seed"][group]):
        yield own - max(cell["by_seed"][group][place] for cell in singles)
