"""The report of a run as one HTML page: learning curves, relevance beside baselines, slices, what is beyond accuracy, modalities, examples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medley.metrics.bootstrap import CONFIDENCE
from medley.report_page import bars, heading, line_plot, page, paragraph, section, table, tiles
from medley.training.evaluate import EvaluateConfig
from medley.training.examples import Example
from medley.training.measures import MIN_GROUP_USERS
from medley.training.slices import HEAD_SHARE, MAX_VALUES

MAX_POINTS = 200
"""of a curve of losses"""
BEYOND = {
    "coverage": "share of the catalogue shown to anybody",
    "gini": "inequality of how often items are shown (0 equal, 1 one item)",
    "novelty_bits": "novelty, bits",
    "diversity": "diversity within a list (mean 1 − cosine)",
    "mean_popularity": "mean train count of the items shown",
}


@dataclass(frozen=True)
class RunReport:
    """What the page shows. history: of the run, one record per epoch. evaluation: content of evaluation.json. examples: split → users.

    modality_shares: item group → modality → mean share in the item vectors; empty where nothing is fused.
    """

    name: str
    counts: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any]
    modality_shares: Mapping[str, Mapping[str, float]]
    examples: Mapping[str, Sequence[Example]]
    config: EvaluateConfig

    @property
    def metric(self) -> str:
        """The one of short tables."""
        return f"ndcg@{self.config.k}"


def run_page(report: RunReport) -> str:
    """The whole document."""
    parts = [_summary(report), _curves(report)]
    for split, measured in report.evaluation["splits"].items():
        parts += [
            section(f"Relevance on {split}", *_relevance(report, measured)),
            section(f"Compared with others on {split}", *_compared(report, measured)),
            section(f"Slices of the users on {split}", *_slices(report, measured)),
            section(f"Fairness between groups on {split}", *_fairness(report, measured)),
            section(f"Beyond accuracy on {split}", *_beyond(report, measured)),
        ]
    parts += [_modalities(report)] if report.modality_shares else []
    parts += [section(f"Examples from {split}", *_examples(examples)) for split, examples in report.examples.items() if examples]
    return page(f"Run {report.name}", *parts, _notes(report))


def interval_text(estimate: Mapping[str, float | None]) -> str:
    """`0.1234 [0.1200, 0.1268]`, the mean alone where it has no interval, a dash where there is none."""
    if estimate["mean"] is None:
        return "–"
    digits = 4 if abs(estimate["mean"]) < 100 else 1
    mean, low, high = (None if estimate[key] is None else f"{estimate[key]:.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean}" if low is None else f"{mean} [{low}, {high}]"


def _summary(report: RunReport) -> str:
    counts = ", ".join(f"{value:,} {name.removeprefix('num_').replace('_', ' ')}" for name, value in report.counts.items())
    run = report.evaluation["run"]
    return paragraph(f"{counts}. Run {run['fingerprint']}, trained on prepared set {run['prepared']}.")


def _curves(report: RunReport) -> str:
    losses = [(record.get("first_step", 0) + place, loss) for record in report.history for place, loss in enumerate(record.get("step_losses", []))]
    if not losses:
        return section("Learning curves", paragraph("This kind of training has no steps.", is_note=True))
    # Means of neighbours: single steps are noise, and thousands of points make a page heavy.
    pieces = np.array_split(np.array(losses), min(MAX_POINTS, len(losses)))
    smooth = [(float(piece[:, 0].mean()), float(piece[:, 1].mean())) for piece in pieces]
    names = sorted({name for record in report.history for name in record.get("valid", {})})
    name = report.metric if report.metric in names else next(iter(names), "")
    valid = [(number, record["valid"][name]) for number, record in enumerate(report.history) if record.get("valid", {}).get(name) is not None]
    return section("Learning curves", line_plot({"train": smooth}, "step", "loss"), line_plot({f"valid {name}": valid}, "epoch", name or "metric"))


def _relevance(report: RunReport, measured: Mapping[str, Any]) -> Iterator[str]:
    relevance, sizes = measured["relevance"], report.evaluation["item_groups"]
    whole = {name: by_group["all"][report.metric] for name, by_group in relevance.items()}
    known = {name: estimate for name, estimate in whole.items() if estimate["mean"] is not None}
    ends = {name: (estimate["low"], estimate["high"]) for name, estimate in known.items() if estimate["low"] is not None}
    yield paragraph(f"{report.metric} of all items, {measured['num_users']:,} users")
    yield bars({name: estimate["mean"] for name, estimate in known.items()}, ends)
    yield heading(f"{report.metric} by group of items, each ranked apart")
    rows = [[group, size, *(interval_text(by_group[group][report.metric]) for by_group in relevance.values())] for group, size in sizes.items()]
    yield table(["items", "number", *relevance], rows)
    yield heading("Every metric of the model, all items")
    names = dict.fromkeys(metric.partition("@")[0] for metric in relevance["model"]["all"])
    yield table(
        ["metric", *(f"at {k}" for k in report.config.ks)],
        [[name, *(interval_text(relevance["model"]["all"][f"{name}@{k}"]) for k in report.config.ks)] for name in names],
    )


def _compared(report: RunReport, measured: Mapping[str, Any]) -> Iterator[str]:
    rows = []
    for name, by_group in measured["compared"].items():
        for group, by_metric in by_group.items():
            found = by_metric[report.metric]
            if found["mean"] is not None:
                rows.append([name, group, found["num_users"], interval_text(found), found["p_value"]])
    yield paragraph(f"Model minus the other, {report.metric} of the same users. p: of no difference at all, by turning signs at random.")
    yield table(["other", "items", "users", "difference", "p"], rows)


def _slices(report: RunReport, measured: Mapping[str, Any]) -> Iterator[str]:
    names = list(measured["relevance"])
    for dimension, parts in measured["slices"].items():
        rows = [
            [group, by_scorer["model"][report.metric]["num_users"], *(interval_text(by_scorer[name][report.metric]) for name in names)]
            for group, by_scorer in parts.items()
        ]
        yield heading(f"{dimension}: {report.metric} of all items")
        yield table(["users", "number", *names], rows)


def _fairness(report: RunReport, measured: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        [dimension, name, found["worst"], found["worst_mean"], found["best"], found["best_mean"], found["gap"]]
        for dimension, by_scorer in measured["fairness"].items()
        for name, found in by_scorer.items()
    ]
    yield paragraph(f"The worst and the best served group by {report.metric}; groups of fewer than {MIN_GROUP_USERS} users are left out.")
    yield table(["grouped by", "scorer", "worst", report.metric, "best", report.metric, "gap"], rows)


def _beyond(report: RunReport, measured: Mapping[str, Any]) -> Iterator[str]:
    names = list(measured["beyond_accuracy"])
    rows = []
    for key, meaning in BEYOND.items():
        found = [measured["beyond_accuracy"][name][key] for name in names]
        rows.append([meaning, *(interval_text(value) if isinstance(value, Mapping) else value for value in found)])
    yield paragraph(f"Of the first {report.config.k} places of everybody's list.")
    yield table(["measure", *names], rows)


def _modalities(report: RunReport) -> str:
    names = list(next(iter(report.modality_shares.values())))
    rows = [[group, *shares.values()] for group, shares in report.modality_shares.items()]
    return section(
        "Modalities",
        paragraph("Mean share of each modality in the items' content vectors: how far the vector moves without it."),
        bars(dict(report.modality_shares["all"])),
        table(["items", *names], rows),
    )


def _examples(examples: Sequence[Example]) -> Iterator[str]:
    yield paragraph("Framed: what the user really chose in this split.", is_note=True)
    for example in examples:
        yield heading(f"User {example.user_id}: {example.num_train_items} train items, {example.num_relevant} to find")
        if example.history:
            yield paragraph("Had:", is_note=True)
            yield tiles(example.history)
        yield paragraph("Recommended:", is_note=True)
        yield tiles(example.recommended)


def _notes(report: RunReport) -> str:
    return section(
        "How this was measured",
        paragraph(
            "The whole catalogue is ranked for every user with something to find, what they had in earlier splits left out. NDCG is binary, its "
            "ideal list cut at k. Means are over the users with a relevant item in the group."
        ),
        paragraph(
            f"Intervals hold {CONFIDENCE:.0%}: percentile bootstrap over users, {report.config.resamples:,} resamples. They tell how far another sample "
            "of such users would move the mean, not how far another seed of training would."
        ),
        paragraph(
            f"Warm items have a train interaction, cold ones have none. The tail are warm items outside the most popular ones that hold {HEAD_SHARE:.0%} of "
            f"the train interactions. Attributes of more than {MAX_VALUES} values make no slices."
        ),
        paragraph("popularity: train counts. content_knn: mean cosine to the most similar train items. oracle: the true scores of synthetic data."),
    )
