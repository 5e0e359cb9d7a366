"""What a check of data files found: counts, and a histogram of lengths."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.dataset import DataReport
from launcher.lengths import Lengths


def show_report(split: str, report: DataReport, console: Console) -> None:
    """Print counts and the lengths of a split's rows."""
    console.print(Text.assemble((split, "bold"), f"  {report.rows} rows, format {report.format or 'unknown'}"))
    for count, what in ((report.bad_rows, "unusable"), (report.duplicates, "equal to an earlier row")):
        if count:
            console.print(Text(f"  {count} {what}", style="yellow"))
    if report.longer_than_limit:
        console.print(Text(f"  {report.longer_than_limit} longer than sequence_length", style="yellow"))
    if report.rows:
        show_lengths(report.tokens or report.characters, "tokens" if report.tokens else "characters", console)


def show_lengths(lengths: Lengths, unit: str, console: Console) -> None:
    """Print the percentiles and a histogram of lengths."""
    count = sum(rows for _, rows in lengths.buckets)
    mean = lengths.total / count if count else 0.0
    half, *most_rows = (f"{percent} % up to {length}" for percent, length in lengths.percentiles)
    console.print(Text(f"  {unit}: {lengths.smallest} to {lengths.largest}, mean {mean:.0f}, {lengths.total} in all"))
    console.print(Text(f"  of the rows {half}, {', '.join(most_rows)}"))
    most = max((rows for _, rows in lengths.buckets), default=0)
    width = max(10, min(50, console.width - 40))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    for limit, rows in lengths.buckets:
        table.add_row(f"up to {limit}", str(rows), "▇" * max(1, round(width * rows / most)) if rows else "")
    console.print(table)
