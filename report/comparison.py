"""Compares runs of one task: a line for those that differ only by seed, against a baseline."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from featherfed.report.metric import (
    loss_scale,
    lost_unit,
    slightly_worse,
    title,
    value_text,
    word,
)
from featherfed.report.schema import ReportError, RunReport, TargetReport, printable
from featherfed.report.summary import (
    NONE,
    bytes_text,
    count_text,
    newest_scored,
    number_text,
    ratio_text,
    run_flows,
    seconds_text,
    spent,
)
from featherfed.tasks.metrics import is_share

_LONGEST = 40
"""Most characters of a name that is made of settings."""

_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Step:
    """A measured round of a run, and what it took to get there; None where that is not known.

    `sent`: mean payload of a client, both ways, until it holds the round's version. `seconds`: from
    the first round's opening to this one's close.
    """

    round: int
    score: float
    sent: float | None
    seconds: float | None


@dataclass(frozen=True)
class NamedRun:
    """A run, where it was read, and the name that its line is given; "" for one of its settings."""

    path: str
    report: RunReport
    name: str = ""

    @cached_property
    def settings(self) -> Mapping[str, str]:
        """All that tells the run from others of its task, but its seed."""
        run = self.report
        return {
            **{key: value for key, value in run.settings if key != "seed"},
            "dataset": run.dataset or "none",
            "parameters": str(run.num_parameters),
            "featherfed": run.featherfed,
            "task": run.task.model_dump_json(exclude={"loss", "metrics"}),
        }

    @property
    def seed(self) -> str | None:
        """The seed, None if the file does not say."""
        return dict(self.report.settings).get("seed")

    @property
    def score(self) -> float | None:
        """The leading metric at the end, or of the newest measured round if there was no end."""
        run = self.report
        if run.final is not None:
            return run.metric.of(run.final.scores)
        newest = newest_scored(run)
        return None if newest is None else run.metric.of(newest.scores)

    @property
    def payload(self) -> tuple[float, float] | None:
        """Payload bytes up and down, mean per client and round, the final delivery included."""
        up, down = run_flows(self.report)
        if not up.count:
            return None
        return up.total.payload / up.count, down.total.payload / up.count

    @property
    def sent(self) -> tuple[float, float] | None:
        """All bytes up and down as `payload`, with framing, control messages and retries."""
        up, down = run_flows(self.report)
        if not up.count:
            return None
        final = self.report.final
        if final is None:
            return up.total.sent / up.count, down.total.sent / up.count
        return final.totals.uplink.sent / up.count, final.totals.downlink.sent / up.count

    @property
    def round_seconds(self) -> float | None:
        """Mean length of a round; None where no clock ran, as in a simulation."""
        known = [r.seconds for r in self.report.rounds if r.seconds is not None]
        return statistics.mean(known) if any(known) else None

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The measured rounds in order."""
        run = self.report
        sent = dict(spent(run))
        found, clock = [], 0.0
        timed = self.round_seconds is not None
        for entry in run.rounds:
            timed = timed and entry.seconds is not None
            clock += entry.seconds or 0.0
            score = run.metric.of(entry.scores)
            if score is not None:
                found.append(
                    Step(entry.number, score, sent.get(entry.number), clock if timed else None)
                )
        return tuple(found)


@dataclass(frozen=True)
class Point:
    """A place on a line's curve: means over its runs, and the standard deviation of their scores.

    `deviation` is None if there is but one run.
    """

    x: float
    score: float
    deviation: float | None


@dataclass(frozen=True)
class Line:
    """Runs that differ only by seed, under one name."""

    name: str
    runs: tuple[NamedRun, ...]

    @property
    def scores(self) -> dict[str | None, float]:
        """The known scores at the end, by seed."""
        return {run.seed: run.score for run in self.runs if run.score is not None}

    @property
    def mean_score(self) -> float | None:
        """The mean over the seeds, None if no score is known."""
        return statistics.mean(self.scores.values()) if self.scores else None

    def mean(self, of: Callable[[NamedRun], float | None]) -> float | None:
        """Return the mean over the runs of which it is known, None if there is none."""
        known = [value for run in self.runs if (value := of(run)) is not None]
        return statistics.mean(known) if known else None

    def curve(self, of: Callable[[Step], float | None]) -> list[Point]:
        """Return means over the rounds that all runs have measured; `of` gives what lies below."""
        rounds = [{step.round: step for step in run.steps} for run in self.runs]
        shared = [n for n in rounds[0] if all(n in other for other in rounds)]
        found = []
        for number in shared:
            steps = [steps[number] for steps in rounds]
            places = [x for step in steps if (x := of(step)) is not None]
            if len(places) < len(steps):
                continue
            scores = [step.score for step in steps]
            spread = statistics.stdev(scores) if len(scores) > 1 else None
            found.append(Point(statistics.mean(places), statistics.mean(scores), spread))
        return found


@dataclass(frozen=True)
class RunComparison:
    """Lines of runs of one task, and the one that the others are compared with."""

    lines: tuple[Line, ...]
    baseline: Line

    @property
    def run(self) -> RunReport:
        """Any of the runs: their tasks and metrics are the same."""
        return self.baseline.runs[0].report

    @property
    def metric(self) -> str:
        """The name of the leading metric."""
        return self.run.metric.name

    @property
    def unit(self) -> str:
        """Of what is lost: "points", or "%" of the baseline's value."""
        return lost_unit(self.metric)

    @property
    def target(self) -> float | None:
        """A score one point, or percent, worse than the baseline's mean; None if it has none."""
        mean = self.baseline.mean_score
        if mean is None:
            return None
        return slightly_worse(self.metric, self.run.metric.larger_is_better, mean)

    def losses(self, line: Line) -> list[float] | None:
        """Return what a line loses against the baseline, in `unit`, for each seed of both.

        None if that cannot be said: they share no seed, or the baseline's mean, which has no
        percent, is 0.
        """
        scores, base = line.scores, self.baseline.scores
        seeds = [seed for seed in scores if seed in base and seed is not None]
        if not seeds:
            return None
        larger = self.run.metric.larger_is_better
        scale = loss_scale(self.metric, larger, [base[seed] for seed in seeds])
        if scale is None:
            return None
        return [scale * (base[seed] - scores[seed]) for seed in seeds]

    def bytes_to_target(self, line: Line) -> list[float]:
        """Return the bytes until a run first has the target, of those that ever do."""
        found = []
        for run in line.runs:
            reached = (step.sent for step in run.steps if self._reaches(step.score))
            first = next(reached, None)
            if first is not None:
                found.append(first)
        return found

    def _reaches(self, score: float) -> bool:
        target = self.target
        if target is None:
            return False
        return score >= target if self.run.metric.larger_is_better else score <= target


def compare_runs(runs: Sequence[NamedRun], baseline: str | None = None) -> RunComparison:
    """Return runs as lines; `baseline` is a line's name or a run's path, None for the first line.

    Raises ReportError if they cannot be compared: their tasks differ, or two are the same run.
    """
    if len(runs) < 2:
        raise ReportError("one run alone is no comparison; give two or more")
    for other in runs[1:]:
        _check_same(runs[0], other)
    lines = _lines(runs)
    if baseline is None:
        return RunComparison(lines, lines[0])
    for line in lines:
        if baseline == line.name or any(baseline == run.path for run in line.runs):
            return RunComparison(lines, line)
    names = ", ".join(line.name for line in lines)
    raise ReportError(f"there is no line {baseline!r:.120} for the baseline; there are {names}")


def _check_same(one: NamedRun, other: NamedRun) -> None:
    """Raise ReportError naming all in which the tasks of two runs differ."""
    first, second = _task_words(one.report), _task_words(other.report)
    different = [
        f"{what} {first[what]} and {second[what]}" for what in first if first[what] != second[what]
    ]
    if different:
        raise ReportError(
            f"{one.path} and {other.path} cannot be compared: {'; '.join(different)}. Only runs of "
            "one task, by one leading metric, can be"
        )


def _task_words(run: RunReport) -> dict[str, str]:
    """Return what must be the same in runs that are compared, as texts by what it is."""
    task = run.task
    better = "larger" if run.metric.larger_is_better else "smaller"
    return {
        "leading metric": f"{run.metric.name} ({better} is better)",
        "evaluated by": run.evaluated_by or "nobody",
        "inputs": ", ".join(f"{i.name} {i.dtype} {list(i.shape)}" for i in task.inputs),
        "target": ", ".join(_target_text(t) for t in task.target.parts or (task.target,)),
    }


def _target_text(target: TargetReport) -> str:
    words = [target.name, target.kind, str(list(target.shape)) if target.shape else ""]
    if target.class_names:
        names = target.class_names
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        words.append(f"of {len(names)} ({shown})")
    return " ".join(word for word in words if word)


def _lines(runs: Sequence[NamedRun]) -> tuple[Line, ...]:
    """Return runs by given name, or by equal settings, in the order of their first appearance."""
    groups: dict[tuple[object, ...], list[NamedRun]] = {}
    for run in runs:
        key = (run.name,) if run.name else ("", *sorted(run.settings.items()))
        groups.setdefault(key, []).append(run)
    for group in groups.values():
        _check_line(group)
    firsts = [group[0] for group in groups.values()]
    names = _names(firsts)
    for name in names:
        if names.count(name) > 1:
            same = " and ".join(r.path for r, n in zip(firsts, names, strict=True) if n == name)
            raise ReportError(f"{same} would both be {name!r}; name them: NAME=RUN")
    return tuple(
        Line(name, tuple(group)) for name, group in zip(names, groups.values(), strict=True)
    )


def _check_line(runs: Sequence[NamedRun]) -> None:
    """Raise ReportError unless runs differ by their seeds, and by nothing else."""
    first, seeds = runs[0], dict[str | None, NamedRun]()
    for run in runs:
        different = _different([first, run])
        if different:
            told = "; ".join(
                f"{key} {first.settings.get(key, NONE):.60} and {run.settings.get(key, NONE):.60}"
                for key in different
            )
            raise ReportError(
                f"{first.path} and {run.path} are both named {run.name!r}, and differ by more than "
                f"the seed: {told}. Give them names of their own"
            )
        if run.seed in seeds:
            seed = "no seed" if run.seed is None else f"the seed {run.seed}"
            raise ReportError(
                f"{seeds[run.seed].path} and {run.path} have the same settings and {seed}; leave "
                "one out, or give each a name of its own: NAME=RUN"
            )
        seeds[run.seed] = run


def _different(runs: Sequence[NamedRun]) -> list[str]:
    """Return the settings that are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]


def _names(runs: Sequence[NamedRun]) -> list[str]:
    """Return a name for each line, by its first run: as given, or of the settings that differ."""
    different = _different(runs)
    made = [_settings_text(run, different) for run in runs]
    told = all(0 < len(text) <= _LONGEST for text in made)
    return [
        printable(run.name or (text if told else run.path))
        for run, text in zip(runs, made, strict=True)
    ]


def _settings_text(run: NamedRun, keys: Sequence[str]) -> str:
    """Return settings as a text, the codec first and without its key: "balanced, rounds 12"."""
    return ", ".join(
        f"{'' if key == 'uplink' else key.replace('_', ' ') + ' '}{run.settings.get(key, NONE)}"
        for key in sorted(keys, key=lambda key: key != "uplink")
    )


@dataclass(frozen=True)
class ComparisonTable:
    """The finished texts of a comparison: a row per line, headings, and what to know of them."""

    rows: list[dict[str, str]]
    metric: str
    """What the leading metric is called in a sentence."""
    heading: str
    baseline: str
    lost: str
    """Heading of what is lost against the baseline."""
    target: str
    notes: list[str]


def comparison_table(comparison: RunComparison) -> ComparisonTable:
    """Return the texts of a comparison."""
    return ComparisonTable(
        [_row(comparison, line) for line in comparison.lines],
        word(comparison.metric),
        title(comparison.metric),
        comparison.baseline.name,
        "Points lost" if comparison.unit == "points" else "% lost",
        value_text(comparison.metric, comparison.target),
        list(_notes(comparison)),
    )


def _row(comparison: RunComparison, line: Line) -> dict[str, str]:
    size = comparison.run.float32_bytes
    up = line.mean(lambda run: _side(run.payload, 0))
    down = line.mean(lambda run: _side(run.payload, 1))
    return {
        "name": line.name,
        "seeds": str(len(line.runs)),
        "rounds": _range_text([len(run.report.rounds) for run in line.runs]),
        "score": _score_text(comparison.metric, list(line.scores.values())),
        "lost": _lost_text(comparison, line),
        "up": count_text(up),
        "up_sent": count_text(line.mean(lambda run: _side(run.sent, 0))),
        "up_ratio": ratio_text(size / up if up else None),
        "down": count_text(down),
        "down_sent": count_text(line.mean(lambda run: _side(run.sent, 1))),
        "down_ratio": ratio_text(size / down if down else None),
        "seconds": seconds_text(line.mean(lambda run: run.round_seconds)),
        "to_target": _target_bytes_text(comparison, line),
    }


def _side(both: tuple[float, float] | None, side: int) -> float | None:
    return None if both is None else both[side]


def _range_text(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _score_text(metric: str, scores: Sequence[float]) -> str:
    """Return mean and standard deviation: "89.90 ± 0.12 %", or as numbers."""
    if len(scores) < 2:
        return value_text(metric, scores[0] if scores else None)
    mean, spread = statistics.mean(scores), statistics.stdev(scores)
    if is_share(metric):
        return f"{100 * mean:.2f} ± {100 * spread:.2f} %"
    return f"{number_text(mean)} ± {number_text(spread)}"


def _lost_text(comparison: RunComparison, line: Line) -> str:
    losses = comparison.losses(line)
    if line is comparison.baseline or losses is None:
        return NONE
    text = f"{round(statistics.mean(losses), 2) + 0:+.2f}"  # no -0.00
    return f"{text} ± {statistics.stdev(losses):.2f}" if len(losses) > 1 else text


def _target_bytes_text(comparison: RunComparison, line: Line) -> str:
    if comparison.target is None:
        return NONE
    found = comparison.bytes_to_target(line)
    if not found:
        return "never"
    text = bytes_text(statistics.mean(found))
    return text if len(found) == len(line.runs) else f"{text} ({len(found)} of {len(line.runs)})"


def _notes(comparison: RunComparison) -> Iterator[str]:
    """Yield what a reader must know to read the figures right."""
    runs = [run for line in comparison.lines for run in line.runs]
    if open_ := [run.path for run in runs if run.report.final is None]:
        yield (
            f"Not ended: {', '.join(open_)}. The newest measured round counts, without a final "
            "delivery."
        )
    if missing := [run.path for run in runs if run.score is None]:
        yield f"Without a score at the end: {', '.join(missing)}."
    data = {(run.report.dataset, run.report.num_test_examples): run.path for run in runs}
    if comparison.run.evaluated_by == "server" and len(data) > 1:
        told = (f"{name} ({count:,} examples, {path})" for (name, count), path in data.items())
        yield f"Measured on different test data, by name or number: {'; '.join(told)}."
    for line in comparison.lines:
        if alone := _unpaired_text(line, comparison.baseline):
            yield f"What is lost counts on shared seeds only: {alone}."
    if all(run.round_seconds is None for run in runs):
        yield "No run says how long its rounds took: simulations have no clock."


def _unpaired_text(line: Line, base: Line) -> str:
    """Return which seeds one of two lines has alone; empty if none."""
    if line is base:
        return ""
    found = []
    for one, other in ((line, base), (base, line)):
        known = _seeds(other.runs)
        alone = [seed for seed in _seeds(one.runs) if seed == _UNKNOWN or seed not in known]
        if alone:
            found.append(f"{one.name} alone has seed{'s' * (len(alone) > 1)} {', '.join(alone)}")
    return "; ".join(found)


def _seeds(runs: Iterable[NamedRun]) -> list[str]:
    return [_UNKNOWN if run.seed is None else run.seed for run in runs]
