"""The table of an ablation, as a page and as plain text."""

from collections.abc import Mapping, Sequence
from typing import Any

from medley.report_page import bars, page, paragraph, section, table
from medley.training.run_page import interval_text

GROUPS = ("all", "warm", "cold")


def ablation_page(name: str, report: Mapping[str, Any]) -> str:
    """The whole document. report: content of report.json."""
    metric, seeds = report["metric"], len(report["seeds"])
    known = [(row_name(cell), cell["relevance"]["all"][metric]) for cell in report["cells"]]
    ends = {row: (found["low"], found["high"]) for row, found in known if found["low"] is not None}
    header = ["fusion", "parts", *(f"{metric}, {group} items" for group in GROUPS), "minus the whole model, all items", "p"]
    return page(
        f"Ablation {name}",
        paragraph(f"{metric} on {report['split']}, {report['num_users']:,} users, mean of {seeds} {'seed' if seeds == 1 else 'seeds'}."),
        section("All items", bars({row: found["mean"] for row, found in known if found["mean"] is not None}, ends)),
        section("The table", table(header, [_row(cell, metric) for cell in report["cells"]])),
        section("Beside", table(["scorer", *GROUPS], [[scorer, *_cells(found, metric)] for scorer, found in report["references"].items()])),
        paragraph(
            "Each row was trained anew on the vectors of its parts; the encoders themselves were trained once, together. ids: the free vector of "
            "each item. Intervals are over users; p by turning the signs of the users' differences at random.",
            is_note=True,
        ),
    )


def row_name(cell: Mapping[str, Any]) -> str:
    """`gated: image + text + ids`."""
    return f"{cell['fusion']}: {' + '.join(cell['parts'])}"


def ablation_text(report: Mapping[str, Any]) -> str:
    """A plain table for the terminal."""
    metric = report["metric"]
    lines = [f"{metric + ' on ' + report['split']:<44}" + "".join(f"{group:>26}" for group in GROUPS)]
    rows = [(row_name(cell), cell["relevance"]) for cell in report["cells"]] + list(report["references"].items())
    return "\n".join(lines + [f"{name:<44}" + "".join(f"{text:>26}" for text in _cells(found, metric)) for name, found in rows])


def _cells(relevance: Mapping[str, Any], metric: str) -> Sequence[str]:
    return [interval_text(relevance[group][metric]) for group in GROUPS]


def _row(cell: Mapping[str, Any], metric: str) -> list[object]:
    row: list[object] = [cell["fusion"], " + ".join(cell["parts"]), *_cells(cell["relevance"], metric)]
    difference = cell["minus_whole"].get("all", {}).get(metric)
    return row + ([interval_text(difference), difference["p_value"]] if difference else [None, None])
