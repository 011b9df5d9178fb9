"""What a user sees: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from msl.plan import COLUMNS, Plan, headline, path_lines, render, rows

_PLAIN_EVERY_S = 10.0

_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)


def line(text: str) -> None:
    """One line of ordinary output."""
    _out.print(escape(text), soft_wrap=True)


def error_line(text: str) -> None:
    """One line that says what went wrong."""
    _err.print(f"[bold red]msl:[/] {escape(' '.join(text.split()))}", soft_wrap=True)


def clear() -> None:
    """Empty the terminal, if it is one."""
    _out.clear()


def status_line(text: str) -> bool:
    """On a terminal: show a line in the place of the last such one. Elsewhere: False, and nothing is shown."""
    if not _out.is_terminal:
        return False
    _out.file.write(f"\r\x1b[K{text[: _out.width - 1]}")
    _out.file.flush()
    return True


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal while the body runs; it is told how much is done."""
    if not _out.is_terminal:
        yield lambda _done: None
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_out, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def table(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """A table; numbers to the right."""
    if not _out.is_terminal:
        widths = [max(len(row[i]) for row in (columns, *cells)) for i in range(len(columns))]
        line(title)
        for row in (columns, *cells):
            line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    shown = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        numeric = all(row[index][:1].isdigit() or row[index] in ("-", "") for row in cells)
        shown.add_column(column, justify="right" if numeric else "left")
    for row in cells:
        shown.add_row(*map(escape, row))
    _out.print(shown)


def show_plan(plan: Plan) -> None:
    """The plan as a table."""
    if _out.is_terminal:
        table(headline(plan), COLUMNS, rows(plan))
        for text in path_lines(plan):
            line(text)
    else:
        line(render(plan))


class RunView:
    """Shows a training run; an observer of `msl.actors.training.train`."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._epoch = 0
        self._done = 0
        self._steps = 0
        self._last_line = 0.0

    def say(self, text: str) -> None:
        """A line; above the progress bar if there is one."""
        (self._progress.console if self._progress else _out).print(escape(text), soft_wrap=True, highlight=False)

    def planned(self, plan: Plan) -> None:
        """Show the plan."""
        show_plan(plan)

    def begin_epoch(self, epoch: int, steps: int) -> None:
        """Begin a bar."""
        self._epoch, self._done, self._steps, self._last_line = epoch + 1, 0, steps, time.monotonic()
        if _out.is_terminal:
            self._progress = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[shown]}"),
                TimeRemainingColumn(),
                console=_out,
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task("", total=steps, epoch=f"{epoch + 1}/{self._epochs}", shown="")

    def step(self, record: Any) -> None:
        """Move the bar; without a terminal, a line now and then."""
        self._done += 1
        accuracy = f"  accuracy {record.accuracy:.1%}" if record.accuracy is not None else ""
        shown = f"loss {record.loss:.4f}{accuracy}  {record.samples / record.wall_ms * 1e3:.0f} samples/s"
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=1, shown=shown)
        elif time.monotonic() - self._last_line > _PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            line(f"epoch {self._epoch}/{self._epochs}  step {self._done}/{self._steps}  {shown}")

    def end_epoch(self, entry: Mapping[str, Any]) -> None:
        """One line per epoch that stays."""
        self.close()
        accuracy = f"  test accuracy {entry['test_accuracy']:.2%}" if entry["test_accuracy"] is not None else ""
        line(
            f"epoch {entry['epoch']}/{self._epochs}  loss {entry['loss']:.4f}  test loss {entry['test_loss']:.4f}"
            f"{accuracy}  {entry['seconds']:.1f} s"
        )

    def close(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None
