"""`featherfed sweep`: run a grid of federations, one process per core, and report on all of them.

Each finished run is saved in a file of its own, so the same command goes on after a kill.
"""

from __future__ import annotations

import importlib.metadata
import logging
import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import Queue
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from featherfed.api.machine import machine
from featherfed.cli import sweep_worker
from featherfed.cli.tables import show_sweep
from featherfed.compression.exchange.manifest import Manifest
from featherfed.datasets.partition import parse_scheme, partition
from featherfed.datasets.sources import load_train_test
from featherfed.edge_client.trainer import Trainer
from featherfed.proto import federation_pb2 as pb
from featherfed.report.frontier import render_sweep
from featherfed.server.coordinator.admission import LITERT
from featherfed.server.errors import ServerError
from featherfed.server.rounds.uplink import PROMISES
from featherfed.sweep import results
from featherfed.sweep.grid import Case, Sweep, load_sweep
from featherfed.sweep.simulate import simulate

log = logging.getLogger(__name__)


def run_sweep(path: Path, workers: int, output: Path | None) -> None:
    """Run the cases of a sweep file that have no result yet, then write tables and page."""
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
    if missing:
        _run_all(missing, output, min(workers or os.cpu_count() or 1, len(missing)))
    _report(sweep, cases, output)


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


def _run_all(cases: Sequence[Case], output: Path, workers: int) -> None:
    # TensorFlow does not survive a fork.
    context = multiprocessing.get_context("spawn")
    rounds: Queue[int] = context.Queue()
    with (
        _progress() as progress,
        ProcessPoolExecutor(workers, context, sweep_worker.start, (rounds,)) as pool,
    ):
        bar = progress.add_task("rounds", total=sum(case.settings.rounds for case in cases))
        counter = threading.Thread(target=_count_rounds, args=(rounds, progress, bar))
        counter.start()
        open_: dict[Future[float], Case] = {
            pool.submit(run_case, case, output): case for case in cases
        }
        try:
            while open_:
                done, _ = wait(open_, return_when=FIRST_COMPLETED)
                for future in done:
                    case = open_.pop(future)
                    score = future.result()
                    progress.console.print(f"{case.title}: {score:.4f}", soft_wrap=True)
        except BrokenProcessPool as error:
            raise ServerError(
                "a worker was killed, perhaps for lack of memory; finished runs are kept: run the "
                "same command again, with fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            rounds.put(0)
            counter.join()


def _count_rounds(rounds: Queue[int], progress: Progress, bar: object) -> None:
    """Advance the progress bar by every finished round, until a 0 ends it."""
    while rounds.get():
        progress.advance(bar)  # type: ignore[arg-type]


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )


def run_case(case: Case, output: Path) -> float:
    """Run a case in this process, save its metrics, and return the leading metric's final value."""
    # TensorFlow, which the workers need, and not the process that waits for them.
    from featherfed.api.build import KerasEvaluator, build_model, run_task
    from featherfed.api.training_step import offered_step
    from featherfed.edge_client.examples import Examples
    from featherfed.edge_client.keras_trainer import KerasTrainer
    from featherfed.edge_client.litert_trainer import LitertTrainer

    settings = case.settings
    train, test = load_train_test(case.dataset)
    shards = partition(train.labels, case.clients, case.partition, case.seed)
    data = {f"client-{i}": train.take(indices) for i, indices in enumerate(shards)}
    task = run_task(settings, test)
    examples = {name: Examples.of(task, part, 0.0, name) for name, part in data.items()}
    model = build_model(settings, task)

    step = offered_step(model, settings) if case.runtime == LITERT else None
    if step is not None and not step.content:
        raise ServerError(f"{case.name}: {step.missing}")

    def make_trainer(name: str, plan: pb.Plan, manifest: Manifest, step: bytes | None) -> Trainer:
        if step is not None:
            # The step is this process's own.
            return LitertTrainer(plan, manifest, step, examples[name], client=name, trusted=True)
        return KerasTrainer(plan, manifest, examples[name], client=name, model=model)

    def on_round(round_: int, scores: object) -> None:
        if round_ <= settings.rounds:  # one that calibrates comes after them
            sweep_worker.report_round(round_)

    metrics = simulate(
        settings,
        model_json=model.model_json,
        manifest=model.manifest,
        task=task,
        clients={name: part.summary() for name, part in examples.items()},
        make_trainer=make_trainer,
        evaluator=KerasEvaluator(model, test),
        first_weights=model.first_weights(),
        on_round=on_round,
        extra={
            "featherfed": importlib.metadata.version("featherfed"),
            "num_test_examples": len(test),
            "machine": machine(),
        },
        runtime=case.runtime,
        step=step,
    )
    results.save(output, case, metrics)
    return float(metrics["final"]["scores"][task.leading])
