"""The data report as one HTML page."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from medley.data.findings import Finding
from medley.data.report_plots import columns_plot, curve_plot, wave_plot
from medley.data.report_prepared import NUM_TIME_BINS, NUM_VALUE_BINS, PreparedReport
from medley.data.report_samples import Sample
from medley.data.report_tables import TablesReport
from medley.report_page import bars, page, paragraph, picture, section, table
from medley.schema import ITEM_ID

MARKS = {"ok": "✓", "warning": "⚠", "error": "✗"}
COLOURS = {"ok": "var(--c2)", "warning": "var(--c1)", "error": "var(--c4)"}
SAMPLE_STYLE = Markup(
    "<style>.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .8rem; padding: 0; list-style: none }"
    ".cards li { background: var(--card); padding: .7rem; font-size: .85rem; overflow-wrap: anywhere } .cards h3 { margin: 0 }"
    ".cards img { display: block; width: 100%; height: 8rem; object-fit: contain; margin: .4rem 0 } .cards p { margin: .3rem 0 }</style>"
)


def data_page(name: str, findings: Sequence[Finding], tables: TablesReport | None, prepared: PreparedReport | None, samples: Sequence[Sample]) -> str:
    """The whole page. name: of the run."""
    parts = [_findings_section(findings)]
    if prepared is not None:
        parts += [_counts_section(prepared), _coverage_section(prepared), _popularity_section(prepared), _activity_section(prepared)]
        parts += [_time_section(prepared), _values_section(prepared), _quarantine_section(prepared)]
        parts += [_samples_section(samples)] if samples else []
    if tables is not None:
        parts.append(_tables_section(tables))
    return page(f"Data of {name}", *[part for part in parts if part])


def _findings_section(findings: Sequence[Finding]) -> Markup:
    lines = [
        Markup('<p><b style="color:{}">{} {}</b> {}{}</p>').format(
            COLOURS[finding.level], MARKS[finding.level], finding.level, finding.what, f"; {finding.remedy}" if finding.remedy else ""
        )
        for finding in sorted(findings, key=lambda finding: -list(MARKS).index(finding.level))
    ]
    return section("What was found", *lines)


def _counts_section(report: PreparedReport) -> Markup:
    header = ["split", "interactions", "users", "items", "new users", "cold items", "rows of cold items", "from (UTC)", "to (UTC)"]
    rows = [
        [name, split.num_rows, split.num_users, split.num_items, split.num_new_users, split.num_cold_items, split.num_cold_rows]
        + [_minute(moment) for moment in (split.first_time, split.last_time)]
        for name, split in report.splits.items()
    ]
    num_rows = sum(split.num_rows for split in report.splits.values())
    density = num_rows / max(1, report.num_items * report.num_users)
    what = (
        f"{report.num_items:,} items, {report.num_users:,} users, {num_rows:,} interactions ({density:.2%} of all user-item pairs at most). "
        f"{report.num_cold_items:,} items have no train row."
    )
    return section(
        "Counts and splits",
        paragraph(what),
        table(header, rows),
        paragraph(f"New users and cold items have no train row. Prepared set {report.fingerprint} in {report.uri}.", is_note=True),
    )


def _minute(moment: str | None) -> str | None:
    """To the minute, in characters between which no line breaks."""
    return moment and str(np.datetime64(moment, "m")).replace("T", "\N{NO-BREAK SPACE}").replace("-", "\N{NON-BREAKING HYPHEN}")


def _coverage_section(report: PreparedReport) -> Markup:
    columns = {name: count for name, count in sorted(report.coverage.items(), key=lambda entry: -entry[1]) if name != ITEM_ID}
    if not columns:
        return Markup("")
    note = paragraph(
        "Items that have each column; of pictures and sounds those that could be decoded. silent_audio counts sounds that are silence.", is_note=True
    )
    shares = {f"{name} ({count / report.num_items:.1%})": count for name, count in columns.items()}
    return section("Coverage", bars({"all items": report.num_items, **shares}), note)


def _popularity_section(report: PreparedReport) -> Markup:
    points = [(place, 100 * share) for place, share in enumerate(report.popularity_curve)]
    marked = {f"{name} of the items: {share:.1%}": (float(name.rstrip("%")), 100 * share) for name, share in report.top_shares.items()}
    held = ", ".join(f"{name} hold {share:.1%}" for name, share in report.top_shares.items())
    note = f"Gini coefficient {report.gini:.3f}: 0 where every item is as popular as any other, 1 where one item has everything. Dashed: all equal."
    repeated = f"{report.num_repeated_pairs:,} train rows name an item that their user had before (counted over {report.pairs_counted})."
    plot = curve_plot(points, marked, "most popular items, % of the catalogue", "train interactions they hold, %")
    return section(
        "Popularity", plot, paragraph(f"Of the items the most popular {held} of the train interactions."), paragraph(note, is_note=True), paragraph(repeated)
    )


def _activity_section(report: PreparedReport) -> Markup:
    if not report.activity_counts:
        return Markup("")
    labels = [f"{low:,}" if low == 1 else f"{low:,}–{2 * low - 1:,}" for low in report.activity_counts]
    plot = columns_plot({"users": list(report.activity_counts.values())}, labels, "train interactions of a user", "users")
    figures = ", ".join(f"{name} " + f"{value:,.1f}".removesuffix(".0") for name, value in report.activity.items())
    return section("Activity of the users", plot, paragraph(f"Train interactions of the users that have any: {figures}."))


def _time_section(report: PreparedReport) -> Markup:
    if report.first_time is None or report.last_time is None:
        return section("Time", paragraph("The interactions have no times."))
    first, last = np.datetime64(report.first_time), np.datetime64(report.last_time)
    seconds = int((last - first).astype(int))
    unit = "D" if seconds > 3 * 86_400 else "m"
    starts = [first + np.timedelta64(seconds * place // NUM_TIME_BINS, "s") for place in range(NUM_TIME_BINS)]
    series = {name: split.rows_over_time for name, split in report.splits.items() if split.num_rows}
    plot = columns_plot(series, [str(start.astype(f"M8[{unit}]")).replace("T", " ") for start in starts], "time (UTC)", "interactions")
    width = seconds / NUM_TIME_BINS
    span = f"{width / 86_400:.3g} days" if width > 86_400 else f"{width / 3600:.3g} hours" if width > 3600 else f"{width:.3g} s"
    return section("Time", plot, paragraph(f"From {report.first_time} to {report.last_time}; one column is {span}.", is_note=True))


def _values_section(report: PreparedReport) -> Markup:
    if not report.value_counts:
        return Markup("")
    low, high = report.values["least"], report.values["most"]
    labels = [f"{low + (high - low) * place / NUM_VALUE_BINS:.3g}" for place in range(NUM_VALUE_BINS)]
    plot = columns_plot({"rows": report.value_counts}, labels, "value (start of each column)", "train interactions")
    what = f"From {low:g} to {high:g}, mean {report.values['mean']:g}; {report.values['share_missing']:.1%} of the train rows have none."
    return section("Values", plot, paragraph(what, is_note=True))


def _quarantine_section(report: PreparedReport) -> Markup:
    if not report.quarantine:
        return section("Left out", paragraph("Nothing was left out and nothing counts as missing."))
    header = ["table", "column", "reason", "rows", "for example"]
    rows = [
        [line["table"], line["column"], line["reason"], line["num_rows"], f"{line['id']} ({line['shard']} row {line['row']})" if line["shard"] else line["id"]]
        for line in report.quarantine
    ]
    return section("Left out or counted as missing", table(header, rows))


def _samples_section(samples: Sequence[Sample]) -> Markup:
    cards = Markup("").join(_card(sample) for sample in samples)
    note = paragraph(
        "One item at random of each twelfth of the catalogue, as training sees it. Sound: its envelope, drawn to the height of the loudest.", is_note=True
    )
    return section("Samples", SAMPLE_STYLE, note, Markup('<ul class="cards">{}</ul>').format(cards))


def _card(sample: Sample) -> Markup:
    parts = [Markup("<h3>{}</h3><p>{} · {} train rows</p>").format(sample.title or sample.item_id, sample.item_id, f"{sample.num_train:,}")]
    if sample.picture is not None:
        parts.append(picture(sample.picture, f"picture of {sample.title or sample.item_id}"))
    if sample.wave is not None:
        parts.append(wave_plot(sample.wave, f"sound of {sample.seconds:.2f} s") + Markup("<p>{:.2f} s</p>").format(sample.seconds))
    parts += [Markup("<p>{}: {}</p>").format(name, ", ".join(str(tag) for tag in tags)) for name, tags in sample.tags.items()]
    if sample.text is not None:
        parts.append(Markup("<p>{}</p>").format(sample.text))
    return Markup("<li>{}</li>").format(Markup("").join(parts))


def _tables_section(report: TablesReport) -> Markup:
    sizes = [
        [name, found.num_files, found.num_rows, round(found.size_bytes / 1e6, 1), found.contract, _minute(found.first_time), _minute(found.last_time)]
        for name, found in report.tables.items()
    ]
    columns = [
        [name, column, facts.type, "yes" if facts.is_in_contract else "no", facts.num_missing]
        for name, found in report.tables.items()
        for column, facts in found.columns.items()
    ]
    parts = [table(["table", "files", "rows", "MB", "columns", "from (UTC)", "to (UTC)"], sizes)]
    if report.repeats is not None:
        parts.append(paragraph(f"{report.repeats.num_repeats:,} interactions are equal to an earlier row in every column (counted: {report.repeats.how})."))
    parts.append(table(["table", "column", "type", "in the contract", "rows without a value"], columns))
    return section("Tables as they were brought", *parts, paragraph(report.uri, is_note=True))
