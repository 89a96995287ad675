"""What a search leaves behind: the winner as a configuration, every trial, and which settings mattered.

searches/NAME/best.yaml      complete configuration of the winner; its first line is the command that trains it
searches/NAME/trials.jsonl   one trial a line: changes, metric per epoch, seconds, whether it was stopped early
searches/NAME/report.json    best trial, the configuration as it is beside it, importance of each setting, trials best first
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from medley.config import Run, dump_run
from medley.manifest import join_uri, write_bytes, write_json
from medley.search.spaces import Space
from medley.search.trials import TrialRecord, describe


def write_search(uri: str, best_run: Run, records: Sequence[TrialRecord], space: Space, metric: str, seconds: dict[str, float]) -> dict[str, Any]:
    """Write the three files; returns the content of report.json."""
    ranked = sorted((record for record in records if record.is_whole), key=lambda record: (-record.best, record.trial))
    report = {
        "metric": metric,
        "best": _summary(ranked[0]),
        "as_configured": next((_summary(record) for record in ranked if not record.parameters), None),
        "importance": importance(ranked, space),
        "num_trials": len(records),
        "num_failed": len(records) - len(ranked),
        "seconds": seconds,
        "trials": [_summary(record) for record in ranked],
    }
    lines = [json.dumps(asdict(record)) for record in records]
    write_bytes(join_uri(uri, "trials.jsonl"), ("\n".join(lines) + "\n").encode())
    write_json(join_uri(uri, "report.json"), report)
    write_bytes(join_uri(uri, "best.yaml"), _best_yaml(uri, best_run, ranked[0], metric).encode())
    return report


def _summary(record: TrialRecord) -> dict[str, Any]:
    return {
        "trial": record.trial,
        "value": record.best,
        "best_epoch": int(np.argmax(record.metrics)),
        "num_epochs": len(record.metrics),
        "stopped_early": record.stopped_early,
        "seconds": record.seconds,
        "parameters": dict(record.parameters),
    }


def _best_yaml(uri: str, best_run: Run, best: TrialRecord, metric: str) -> str:
    text = io.StringIO()
    text.write(f"# python -m jobs.train {join_uri(uri, 'best.yaml')}\n")
    text.write(f"# winner of a search: trial {best.trial}, valid {metric} {best.best:.4f} on cached vectors | {describe(best.parameters)}\n")
    yaml = YAML()
    yaml.width = 160
    yaml.dump(dump_run(best_run), text)
    return text.getvalue()


def importance(records: Sequence[TrialRecord], space: Space) -> dict[str, float | None]:
    """Setting → share of the variance of the trials' ranks that it explains alone, in [0, 1].

    Numbers: squared rank correlation (Spearman); choices: variance between the choices' mean ranks (η² of Kruskal and Wallis). It sees no
    interplay of settings, and a few trials tell little: below 8 it is None.
    """
    if len(records) < 8:
        return {dimension.key: None for dimension in space.dimensions}
    ranks = _ranks(np.array([record.best for record in records]))
    shares: dict[str, float | None] = {}
    for dimension in space.dimensions:
        values = [record.sampled[dimension.key] for record in records]
        if dimension.kind == "choice":
            groups = [ranks[[value == choice for value in values]] for choice in set(values)]
            between = sum(len(group) * (group.mean() - ranks.mean()) ** 2 for group in groups) / len(ranks)
        else:
            value_ranks = _ranks(np.array(values))
            spread = value_ranks.std()
            between = (np.mean((value_ranks - value_ranks.mean()) * (ranks - ranks.mean())) / spread) ** 2 if spread > 0 else 0.0
        shares[dimension.key] = round(float(between / ranks.var()), 4) if ranks.var() > 0 else 0.0
    return shares


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values sharing their mean rank."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[group]
