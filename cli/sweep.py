"""`featherfed sweep`: run a grid of federations, side by side, and report on all of them.

Each finished run is saved in a file of its own, so the same command goes on after a kill.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from featherfed.cli.sweep_outcome import Outcome, Runner
from featherfed.cli.tables import show_sweep
from featherfed.compression.files import write_whole
from featherfed.datasets.partition import parse_scheme
from featherfed.report.frontier import render_sweep
from featherfed.server.errors import ServerError
from featherfed.server.rounds.uplink import PROMISES
from featherfed.sweep import results
from featherfed.sweep.grid import Case, Sweep, load_sweep

MakeRunner = Callable[[int, Callable[[int], None]], Runner]
"""(number of cases, what is told of finished rounds) -> what runs the cases."""


def run_sweep(path: Path, workers: int, output: Path | None, ray: str | None) -> None:
    """Run the cases of a sweep file that have no result yet, then write tables and page.

    `workers`: runs side by side, 0 for as many as there are cores for. `ray`: the address of a
    cluster to run them on instead. Raises ServerError if some cases failed, once the others are
    done and reported.
    """
    sweep = load_sweep(path)
    cases = list(sweep.cases())
    for case in cases:
        parse_scheme(case.partition)
    output = output or Path(sweep.output)
    try:
        (output / "cases").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServerError(f"cannot write to {output}: {error.strerror}") from error
    missing = [case for case in cases if not results.is_done(output, case)]
    if len(missing) < len(cases):
        click.echo(f"{len(cases) - len(missing)} of {len(cases)} runs are there already")
    failed: list[Outcome] = []
    if missing:
        failed = _run_all(missing, output, _maker(sweep, workers, ray))
    done = [case for case in cases if results.is_done(output, case)]
    if done:
        _report(sweep, done, output)
    if failed:
        raise ServerError(_failure_text(failed, len(cases), output))


def _maker(sweep: Sweep, workers: int, ray: str | None) -> MakeRunner:
    if ray is not None:
        from featherfed.cli.sweep_ray import RayRunner

        address, memory = ray, sweep.memory_mb * 2**20
        return lambda count, on_rounds: RayRunner(address, memory, sweep.run_workers, on_rounds)
    from featherfed.cli import sweep_worker
    from featherfed.cli.sweep_processes import ProcessRunner

    most = workers or max(1, (os.cpu_count() or 1) // sweep.run_workers)
    run = partial(sweep_worker.run, workers=sweep.run_workers)
    return lambda count, on_rounds: ProcessRunner(min(most, count), on_rounds, run=run)


def _report(sweep: Sweep, cases: Sequence[Case], output: Path) -> None:
    rows, rounds = [], []
    for case in cases:
        metrics = results.load(output, case)
        rows.append(results.case_row(case, metrics))
        rounds.extend(results.round_rows(case, metrics))
    results.write_tables(output, rows, rounds)
    report = render_sweep(
        output, sweep.name, rows, rounds, sweep.baseline, sweep.target_score, PROMISES
    )
    show_sweep(report)
    click.echo(f"report: {report.page}")


def _run_all(cases: Sequence[Case], output: Path, make_runner: MakeRunner) -> list[Outcome]:
    """Run cases and save what they give; return those that failed."""
    failed = []
    with _progress() as progress:
        bar = progress.add_task("rounds", total=sum(case.settings.rounds for case in cases))
        runner = make_runner(len(cases), lambda rounds: progress.advance(bar, rounds))
        for outcome in runner.run(cases):
            text = _save(outcome, output)
            progress.console.print(f"{outcome.case.title}: {text}", soft_wrap=True)
            if outcome.metrics is None:
                failed.append(outcome)
    return failed


def _save(outcome: Outcome, output: Path) -> str:
    """Save the metrics of a case, or why there are none; return its score, or that, as a text."""
    error = results.error_path(output, outcome.case)
    if outcome.metrics is None:
        error.parent.mkdir(parents=True, exist_ok=True)
        write_whole(error, outcome.details or outcome.error)
        return f"failed: {outcome.error}"
    results.save(output, outcome.case, outcome.metrics)
    error.unlink(missing_ok=True)
    score = results.final_score(outcome.metrics)
    return "no score" if score is None else f"{score:.4f}"


def _failure_text(failed: Sequence[Outcome], count: int, output: Path) -> str:
    named = "\n".join(f"  {outcome.case.title}: {outcome.error}" for outcome in failed)
    return (
        f"{len(failed)} of {count} runs failed, the same command tries them again "
        f"({output / 'errors'} has the details):\n{named}"
    )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )
