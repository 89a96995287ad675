"""The data report as lines of text for a terminal."""

from collections.abc import Iterator

from medley.data.report_prepared import PreparedReport
from medley.data.report_tables import TablesReport
from medley.schema import ITEM_ID

MAX_REASONS = 10


def tables_text(report: TablesReport) -> Iterator[str]:
    """Lines about the tables."""
    yield f"tables {report.uri}"
    for name, table in report.tables.items():
        times = f" | {table.first_time} to {table.last_time}" if table.first_time else ""
        yield f"  {name:12} {table.num_rows:>13,} rows | {table.num_files:,} files, {table.size_bytes / 1e6:,.1f} MB | columns {table.contract}{times}"
    if report.repeats is not None:
        yield f"  repeats      {report.repeats.num_repeats:>13,} interactions equal to an earlier row (counted: {report.repeats.how})"


def prepared_text(report: PreparedReport) -> Iterator[str]:
    """Lines about a prepared set."""
    yield f"prepared set {report.uri}"
    yield f"  items        {report.num_items:>13,} | {report.num_cold_items:,} without train rows"
    for name, count in sorted(report.coverage.items(), key=lambda entry: -entry[1]):
        if name != ITEM_ID:
            yield f"    {name:10} {count:>13,} ({count / report.num_items:.1%})"
    yield f"  users        {report.num_users:>13,}"
    for name, split in report.splits.items():
        times = f" | {split.first_time} to {split.last_time}" if split.first_time else ""
        news = f", {split.num_new_users:,} new; {split.num_cold_rows:,} rows of items without train rows" if name != "train" else ""
        yield f"  {name:12} {split.num_rows:>13,} rows | {split.num_items:,} items, {split.num_users:,} users{news}{times}"
    shares = ", ".join(f"top {name} {share:.1%}" for name, share in report.top_shares.items())
    yield f"  popularity   {shares} of the train rows | Gini {report.gini:.3f}"
    if report.activity:
        yield "  activity     " + ", ".join(f"{name} {value:,.1f}".removesuffix(".0") for name, value in report.activity.items()) + " train rows per user"
    yield f"  repeats      {report.num_repeated_pairs:>13,} train rows of a pair had before (counted over {report.pairs_counted})"
    if report.values:
        yield "  values       " + ", ".join(f"{name} {value:g}" for name, value in report.values.items())
    for line in report.quarantine[:MAX_REASONS]:
        yield f"  left out     {line['num_rows']:>13,} {line['table']}.{line['column']}: {line['reason']}"
    if len(report.quarantine) > MAX_REASONS:
        yield f"  … and {len(report.quarantine) - MAX_REASONS} more reasons"
    if not report.quarantine:
        yield "  left out                 0"
