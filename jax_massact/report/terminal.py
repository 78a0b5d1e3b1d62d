"""A report at a glance in the terminal: fits 80 columns, and reads as plain text in a log."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jax_massact.report import words
from jax_massact.report.words import Findings
from jax_massact.results import MassiveRecord

LABEL = 18  # columns reserved for a row's label in `Sheet.beside`
MAX_ROWS = 10  # records of one kind; a glance takes in no more, and the JSON file has them all


class Sheet:
    """What is printed, part by part, in ASCII where the console's encoding is not UTF.

    Cells and lines may be anybody's strings: they are never parsed, and what cannot be printed is
    spelled out.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._parts: list[RenderableType] = []
        self._ascii = console.options.ascii_only
        self._explained = False  # what the columns of records mean
        self.plus_minus = "+-" if self._ascii else "±"

    def text(self, text: str, style: str = "") -> Text:
        return Text(words.printable(text, ascii_only=self._ascii), style=style)

    def line(self, text: str, style: str = "") -> None:
        self._parts.append(self.text(text, style))

    def headed(self, head: str, body: str, style: str = "") -> None:
        """A paragraph with its heading on the left."""
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=8, style="bold")
        grid.add_column(overflow="fold")
        grid.add_row(head, self.text(body, style))
        self._parts.append(grid)

    def opening(self, result: Mapping[str, Any], data: str, findings: Findings) -> None:
        """Model and data, the warning, the verdict, and what else should be known."""
        self.headed("Model", words.model_line(result["model"]))
        self.headed("Data", data)
        if findings.warning:
            self.headed("Warning", findings.warning, "bold red")
        if findings.lines:
            style = {"strict": "bold", "relaxed": "yellow", "none": "green"}[findings.strength]
            self.headed("Verdict", "\n".join(findings.lines), style)
        for notice in result["notices"]:
            self.headed("Note", notice)

    def title(self, text: str) -> None:
        """The title of a table, with a blank line before it."""
        self._parts.append(Padding(self.text(text, "bold"), (1, 0, 0, 0)))

    def table(
        self, head: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str] = (),
        most: int | None = None,
    ) -> None:
        """Rules above and below the head and no others: copies cleanly, and survives a log.

        Args:
          left: the columns that are set flush left and may be folded.
          most: rows to show; a last line counts the others.
        """
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
        for name in head:
            flush = name in left
            table.add_column(self.text(name), justify="left" if flush else "right",
                             no_wrap=not flush, overflow="fold")
        rows = list(rows)
        for row in rows[:most]:
            table.add_row(*map(self.text, row))
        self._parts.append(table)
        if most is not None and len(rows) > most:
            self.line(f"and {len(rows) - most} more, in the JSON file", "dim")

    def beside(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Columns side by side, with each row's label in the first.

        Columns that do not fit into a line continue below, after a blank line.
        """
        rows = list(rows)
        columns = zip(head, *rows, strict=True)
        wide = [max(self.text(cell).cell_len for cell in column) + 2 for column in columns]
        start = 1
        while start < len(head):
            stop, left = start + 1, self._console.width - LABEL - wide[start]
            while stop < len(head) and wide[stop] <= left:
                left -= wide[stop]
                stop += 1
            if start > 1:
                self.line("")
            shown = lambda row, part=slice(start, stop): [row[0], *row[part]]
            self.table(shown(head), map(shown, rows), left=(head[0],))
            start = stop

    def massive(
        self, records: Sequence[MassiveRecord],
        titles: tuple[str, str] = ("Massive activations (strict)",
                                   "Relaxed only (not massive by the strict definition)"),
        most: int = MAX_ROWS,
    ) -> None:
        """The largest strict, then the largest relaxed-only records, each under its title.

        The first time, a last line says what the columns mean.
        """
        head = ("dim", "layers", "value", "n", "ratio", "seqs", "where", "written", "removed")
        for strict, title in zip((True, False), titles, strict=True):
            if some := words.by_size(records, strict=strict):
                self.title(title)
                self.table(head, map(self._record, some), head[6:], most)
        if records and not self._explained:
            self.line(f"{words.COLUMNS}; seqs: sequences in which it is massive", "dim")
            self._explained = True

    def _record(self, r: MassiveRecord) -> list[str]:
        return [
            str(r["dim"]),
            words.layer_span(r["first_layer"], r["last_layer"]),
            words.mean_and_std(r["value_mean"], r["value_std"], r["value_sequences"],
                               self.plus_minus),
            str(r["value_sequences"]),
            words.number(r["ratio"]),
            words.percent(r["share_of_sequences"]),
            self._where(r),
            words.sublayer(r["written_by"]),
            words.sublayer(r["removed_by"]),
        ]

    def _where(self, record: MassiveRecord, limit: int = 2) -> str:
        """`pos 0, 5 '<s>' '.'`: the most frequent positions and tokens."""
        positions = [str(p["position"]) for p in record["positions"]]
        tokens = [words.token_label(t["token"], 16) for t in record["tokens"]]
        if not self._ascii:  # lines break at a space, so it is shown as a sign
            tokens = [token.replace(" ", "␣") for token in tokens]
        more = "" if len(positions) <= limit else ", ..."
        return f"pos {', '.join(positions[:limit])}{more} {' '.join(tokens[:limit])}".strip()

    def close(self, lines: Iterable[str] = ()) -> None:
        """Prints everything, these lines last."""
        for line in lines:
            self.line(line, "dim")
        self._console.print(Group(*self._parts))
