"""`featherfed-simulate`: run seeds, replay one, and make a failing one short."""

from __future__ import annotations

import click

try:
    from featherfed.simulator.campaign import simulate
    from featherfed.simulator.scenario import Scenario
    from featherfed.simulator.shrinker import shrink
    from featherfed.simulator.simulation import Simulation, with_faults
    from featherfed.simulator.world import Result
except ModuleNotFoundError as error:
    raise SystemExit(
        f"featherfed-simulate: {error.name} is not installed; pip install 'featherfed[simulator]'"
    ) from error


@click.command()
@click.option("--seed", type=click.IntRange(min=0), default=0, help="The first seed.")
@click.option("--runs", type=click.IntRange(min=1), default=1, help="How many seeds.")
@click.option("--rounds", type=click.IntRange(min=1), default=10, help="Rounds of each run.")
@click.option("--minutes", type=click.FloatRange(min=0), help="Stop after so many minutes.")
@click.option("--processes", type=click.IntRange(min=1), default=1, help="Seeds at the same time.")
@click.option("--faults", help="Of a single seed: only these faults, by number, e.g. 0,3.")
@click.option(
    "--shrink", "shrinks", is_flag=True, help="Leave out faults that a failure does not need."
)
@click.option("--verbose", "-v", is_flag=True, help="Print all that happens in a single seed.")
def app(
    seed: int,
    runs: int,
    rounds: int,
    minutes: float | None,
    processes: int,
    faults: str | None,
    shrinks: bool,
    verbose: bool,
) -> None:
    """Simulate whole runs with faults; everything follows from the seed.

    Prints a line for each run that breaks something that must hold, and ends with 1 then.
    """
    if runs == 1:
        failed = _one(seed, rounds, faults, shrinks, verbose)
    else:
        failed = _many(seed, runs, rounds, processes, minutes, shrinks)
    if failed:
        raise click.exceptions.Exit(1)


def _one(seed: int, rounds: int, faults: str | None, shrinks: bool, verbose: bool) -> bool:
    simulation = Simulation(rounds)
    scenario = simulation.scenario(seed)
    if faults is not None:
        numbers = [int(word) for word in faults.split(",") if word]
        if not all(0 <= number < len(scenario.faults) for number in numbers):
            raise click.BadParameter(f"seed {seed} has faults 0 to {len(scenario.faults) - 1}")
        scenario = with_faults(scenario, numbers)
    _describe(scenario)
    result = simulation.run(scenario, click.echo if verbose else None)
    if result.violation is None:
        click.echo(
            f"seed {seed}: nothing broken; {result.steps} events, "
            f"{result.simulated_seconds:.0f} simulated seconds, trace {result.trace}"
        )
        return False
    _report(result, rounds)
    if shrinks:
        _shrink(simulation, seed)
    return True


def _many(
    seed: int, runs: int, rounds: int, processes: int, minutes: float | None, shrinks: bool
) -> bool:
    def on_result(result: Result) -> None:
        if result.violation is not None:
            _report(result, rounds)

    seconds = float("inf") if minutes is None else 60 * minutes
    campaign = simulate(seed, runs, rounds, processes, seconds, on_result)
    for name, value in campaign.figures().items():
        if name != "failures":
            click.echo(f"{name}: {value}")
    for failure in campaign.failures if shrinks else ():
        simulation = Simulation(rounds)
        _shrink(simulation, failure.seed)
    return bool(campaign.failures)


def _describe(scenario: Scenario) -> None:
    waits = "every round waits for all" if scenario.exact else "rounds have a quorum and a deadline"
    click.echo(
        f"{len(scenario.members)} clients, {scenario.uplink}, broadcast {scenario.broadcast}, "
        f"{scenario.chunk} bytes a message, {waits}"
    )
    for number, fault in enumerate(scenario.faults):
        click.echo(f"  {number}: {fault}")


def _report(result: Result, rounds: int) -> None:
    click.echo(f"seed {result.seed}, {rounds} rounds: {result.violation}")


def _shrink(simulation: Simulation, seed: int) -> None:
    """Print the fewest faults that still fail, and the command that replays them."""
    scenario = simulation.scenario(seed)
    found, result = shrink(simulation, scenario)
    click.echo(f"{len(found)} of {len(scenario.faults)} faults are enough: {result.violation}")
    for number in found:
        click.echo(f"  {number}: {scenario.faults[number]}")
    numbers = ",".join(str(number) for number in found)
    click.echo(
        f"featherfed-simulate --seed {seed} --rounds {scenario.rounds} --faults '{numbers}' -v"
    )


if __name__ == "__main__":
    app()
