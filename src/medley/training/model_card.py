"""The model card of a run, in Markdown (Mitchell et al. 2019): what it is, what it was made from, how good it is and for whom, where it ends."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from medley.metrics.bootstrap import CONFIDENCE
from medley.report_page import cell_text
from medley.training.run_page import RunReport, interval_text


def model_card(report: RunReport, config: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """The whole document. config: the resolved Run; versions: of the packages that trained it."""
    return "\n".join(_lines(report, config, versions)) + "\n"


def plain_text(value: object) -> str:
    """A value as Markdown shows it literally, on one line: names of users' own groups may hold anything."""
    text = re.sub(r"([\\`*_{}\[\]()<>|~&])", r"\\\1", " ".join(str(value).split()))
    return text.replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")


def _lines(report: RunReport, config: Mapping[str, Any], versions: Mapping[str, str]) -> Iterator[str]:
    run, splits = report.evaluation["run"], report.evaluation["splits"]
    yield f"# Model card: {plain_text(report.name)}"
    yield ""
    yield f"A recommender of items to known users, and by fold-in to new ones. Run `{run['fingerprint']}`."
    yield ""
    yield "## Model and training"
    yield ""
    for name, value in _facts(config):
        yield f"- {name}: {plain_text(value)}"
    yield f"- versions: {plain_text(', '.join(f'{name} {number}' for name, number in versions.items()))}"
    yield ""
    yield "## Data"
    yield ""
    yield f"- prepared set: `{run['prepared']}`"
    for name, value in report.counts.items():
        yield f"- {name.removeprefix('num_').replace('_', ' ')}: {value:,}"
    for split, measured in splits.items():
        yield from _measured(report, split, measured)
    yield ""
    yield "## Where it ends"
    yield ""
    yield "- Offline figures: users were shown what other systems chose, so what was never shown counts as not relevant."
    yield "- Gaps between groups say who is served worse, not why; groups that the data do not name are not seen."
    yield "- Intervals are over users of this sample and one training; another seed moves the figures as well."
    yield "- Histories and attributes are personal data: keep the bundle where such data may be kept."


def _facts(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    model, train = config["model"], config["train"]
    yield "training", train["kind"]
    if train["kind"] != "gradient":
        for name, value in train.items():
            if name != "kind":
                yield name.replace("_", " "), plain_text(str(value))
        yield "all settings", "config.json beside this report's folder"
        return
    for name, encoder in model["encoders"].items():
        yield f"encoder {plain_text(name)}", f"{encoder['kind']}, {encoder.get('train', 'no weights of its own')}"
    for name in ("fusion", "users", "head"):
        yield name, model[name]["kind"]
    yield "dimension", model["dimension"]
    yield "loss", config["loss"]["kind"]
    yield "all settings", "config.json beside this report's folder"


def _measured(report: RunReport, split: str, measured: Mapping[str, Any]) -> Iterator[str]:
    relevance = measured["relevance"]
    names = list(relevance)
    yield ""
    yield f"## Quality on {split}: {report.metric} of {measured['num_users']:,} users, with {CONFIDENCE:.0%} intervals"
    yield ""
    yield from _table(
        ["items", *names], [[group, *(interval_text(relevance[name][group][report.metric]) for name in names)] for group in report.evaluation["item_groups"]]
    )
    yield ""
    for name, by_group in measured["compared"].items():
        found = by_group.get("all", {}).get(report.metric)  # absent without resamples
        if found and found["mean"] is not None:
            yield f"- model minus {plain_text(name)}: {plain_text(interval_text(found))}, p = {found['p_value']:.4f}"
    yield ""
    yield from _table(
        ["grouped by", "worst served", report.metric, "best served", report.metric, "gap"],
        [
            [dimension, *(cell_text(found["model"][key]) for key in ("worst", "worst_mean", "best", "best_mean", "gap"))]
            for dimension, found in measured["fairness"].items()
            if "model" in found
        ],
    )


def _table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(plain_text(cell) for cell in header) + " |"
    yield "|" + " --- |" * len(header)
    for row in rows:
        yield "| " + " | ".join(plain_text(cell) for cell in row) + " |"
