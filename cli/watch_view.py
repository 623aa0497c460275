"""Shows a watched run in a terminal: one screen, 80 columns are enough."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from featherfed.cli.page_source import Away
from featherfed.cli.snapshot import Line, Snapshot, WatchedClient
from featherfed.report.metric import value_text, word
from featherfed.report.summary import bytes_text, number_text

STATES = {
    "training": "yellow",
    "reported": "green",
    "present": "green",
    "late": "red",
    "lost": "red",
    "excluded": "magenta",
}
"""The states of clients, those that a round waits for first, and their colours."""
_BARS = "▁▂▃▄▅▆▇█"
_NOTHING = "-"
_FRAME_ROWS = 3  # of a table: heading, rule and the blank line below
_MOST_ROUNDS, _MOST_REFUSALS, _LEAST_LOG = 7, 3, 3


class TerminalView:
    """Redraws the screen twice a second, so that countdowns go on between snapshots."""

    def __init__(self, address: str, console: Console | None = None) -> None:
        self._screen = Screen(address)
        self._console = console or Console()
        self._live = Live(self._screen, console=self._console, screen=True, refresh_per_second=2)

    def __enter__(self) -> TerminalView:
        """Take the terminal's screen."""
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the screen back, and leave what was shown last below the command."""
        self._live.__exit__(kind, error, traceback)
        if error is None or kind is KeyboardInterrupt:
            self._console.print(self._screen)

    def show(self, message: Snapshot | Away) -> None:
        """Show what came of the page."""
        self._screen.take(message)


class Screen:
    """What is known of a run, as lines that fit the terminal that they are printed to."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._known: tuple[Snapshot | None, float] = None, 0.0
        """The newest snapshot, and when it came."""
        self._away = ""

    def take(self, message: Snapshot | Away) -> None:
        """Take up what came of the page."""
        if isinstance(message, Away):
            self._away = message.why
        else:
            self._known, self._away = (message, time.monotonic()), ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        yield self._lines(options.max_width, options.max_height)

    def _lines(self, width: int, height: int) -> Group:
        snapshot, came = self._known
        if snapshot is None:
            return Group(_line(f"waiting for the page at {self._address}"), *self._away_lines())
        old = time.monotonic() - came
        head = [*_head(snapshot, old, width), *self._away_lines()]
        rooms = _rooms(snapshot, height - len(head) - 1)
        rounds, clients, refusals, events = rooms
        parts: list[RenderableType] = list(head)
        if rounds:
            parts += [_rounds(snapshot, rounds), Text()]
        if clients:
            parts += [_clients(snapshot, clients, old), Text()]
        if refusals:
            parts += [*_events("refused", snapshot.refusals[:refusals]), Text()]
        parts += _events("log", snapshot.log[:events]) if events else []
        return Group(*parts)

    def _away_lines(self) -> list[Text]:
        if not self._away:
            return []
        return [_line(f"no answer ({self._away}); looking for it again", "bold red")]


def _rooms(snapshot: Snapshot, height: int) -> tuple[int, int, int, int]:
    """Return how many rounds, clients, refusals and log lines fit into so many rows."""
    refusals = min(len(snapshot.refusals), _MOST_REFUSALS)
    left = height - (refusals + 2 if refusals else 0)
    log = min(len(snapshot.log), _LEAST_LOG) + 1 if snapshot.log else 0
    rounds = min(len(snapshot.points), _MOST_ROUNDS, max(0, (left - log) // 2 - _FRAME_ROWS))
    left -= rounds + _FRAME_ROWS if rounds else 0
    clients = min(len(snapshot.clients), max(0, left - log - _FRAME_ROWS - 1))
    left -= clients + _FRAME_ROWS + 1 if clients else 0
    return rounds, clients, refusals, max(0, left - 1)


def _head(snapshot: Snapshot, old: float, width: int) -> list[Text]:
    first = Text(no_wrap=True, overflow="ellipsis")
    first.append(snapshot.run or "run", "bold")
    first.append(f"  round {snapshot.round} of {snapshot.rounds}  {snapshot.phase}")
    if snapshot.deadline_in is not None and not snapshot.finished:
        first.append(f"  closes in {clock_text(max(0.0, snapshot.deadline_in - old))}")
    lines = [first, _line(score_line(snapshot)), _line(bytes_line(snapshot))]
    scores = [point.score for point in snapshot.points if point.score is not None]
    if len(scores) > 1:
        lines[1].append(f"  {sparkline(scores[-min(60, width // 3) :])}", "cyan")
    if snapshot.waiting_for:
        lines.append(_line(waiting_line(snapshot), "yellow"))
        lines.append(Text(f"join one: {snapshot.join}", overflow="fold"))
    lines.append(Text())
    return lines


def _rounds(snapshot: Snapshot, most: int) -> Table:
    table = _table()
    for heading in ("round", word(snapshot.metric), "loss", "time", "up", "down"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", overflow="ellipsis", no_wrap=True)
    for point in snapshot.points[-most:]:
        table.add_row(
            str(point.round),
            _known(None if point.score is None else value_text(snapshot.metric, point.score)),
            _known(None if point.loss is None else number_text(point.loss)),
            _known(None if point.seconds is None else f"{point.seconds:.1f} s"),
            _known(None if point.up is None else bytes_text(point.up)),
            _known(None if point.down is None else bytes_text(point.down)),
            Text(f"discarded: {point.discarded}" if point.discarded else "", "red"),
        )
    return table


def _clients(snapshot: Snapshot, most: int, old: float) -> Group:
    table = _table()
    table.add_column("client", overflow="ellipsis", no_wrap=True, max_width=16)
    table.add_column("state", no_wrap=True)
    for heading in ("heard", "examples", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("with", overflow="ellipsis", no_wrap=True, max_width=7)
    for heading in ("°C", "batt", word(snapshot.metric)[:9]):
        table.add_column(heading, justify="right", no_wrap=True)
    order = {state: place for place, state in enumerate(STATES)}
    clients = sorted(snapshot.clients, key=lambda c: (order.get(c.state, len(order)), c.name))
    for client in clients[:most]:
        table.add_row(*_client_row(snapshot.metric, client, old))
    counts = Counter(client.state for client in snapshot.clients)
    text = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    more = len(clients) - most
    return Group(table, _line(f"{text}{f' ({more} not shown)' if more > 0 else ''}", "dim"))


def _client_row(metric: str, client: WatchedClient, old: float) -> Sequence[str | Text]:
    heard = None if client.heard_ago is None else clock_text(client.heard_ago + old)
    return (
        Text(client.name),
        Text(client.state[:9], STATES.get(client.state, "")),
        _known(heard),
        _known(None if client.examples is None else f"{client.examples:,}"),
        _known(None if client.seconds is None else f"{client.seconds:.1f} s"),
        Text(client.runtime),
        _known(None if client.temperature is None else f"{client.temperature:.0f}"),
        _known(None if client.battery is None else f"{client.battery:.0f} %"),
        _known(None if client.score is None else value_text(metric, client.score)),
    )


def _events(title: str, lines: Sequence[Line]) -> list[Text]:
    return [
        _line(title, "bold"),
        *(_line(f"{short_time(line.time)} {line.who} {line.text}") for line in lines),
    ]


def score_line(snapshot: Snapshot) -> str:
    """Return the newest known value of the leading metric, and the best one."""
    name = word(snapshot.metric)
    known = [point.score for point in snapshot.points if point.score is not None]
    if not known:
        return f"{name}: not known yet"
    text = f"{name} {value_text(snapshot.metric, known[-1])}"
    if snapshot.best_score is None or snapshot.best_version is None:
        return text
    best = value_text(snapshot.metric, snapshot.best_score)
    return f"{text} (best {best}, version {snapshot.best_version})"


def bytes_line(snapshot: Snapshot) -> str:
    """Return the bytes of all messages so far, and how many float32 would have taken."""
    up, down, wasted = map(bytes_text, (snapshot.up, snapshot.down, snapshot.wasted))
    text = f"{up} up, {down} down, {wasted} in vain"
    sent = snapshot.up + snapshot.down
    if not snapshot.float32 or not sent:
        return text
    ratio = snapshot.float32 / sent
    return f"{text}; float32: {bytes_text(snapshot.float32)} ({ratio:.{0 if ratio > 10 else 1}f}×)"


def waiting_line(snapshot: Snapshot) -> str:
    """Return how many clients are still missing."""
    clients = "client" if snapshot.waiting_for == 1 else "clients"
    return f"waiting for {snapshot.waiting_for} more {clients}"


def clock_text(seconds: float) -> str:
    """8.4 -> "8 s", 95 -> "1:35", 7300 -> "2:01:40"."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short_time(text: str) -> str:
    """Return the clock time in an ISO 8601 text, or the text itself if it is none."""
    date, mark, clock = text.partition("T")
    return clock[:8] if mark and len(date) == 10 else text


def sparkline(values: Sequence[float]) -> str:
    """Return values as bars of eight heights, the lowest as the lowest bar."""
    low, high = min(values), max(values)
    if high == low:
        return _BARS[3] * len(values)
    return "".join(
        _BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in values
    )


def _known(text: str | None) -> str:
    return _NOTHING if text is None else text


def _line(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
