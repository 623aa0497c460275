"""Options, help texts and error messages of all commands."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from featherfed.api.extras import how_to_install
from featherfed.cli import log
from featherfed.compression.errors import CodecError
from featherfed.edge_client.errors import Rejected, Unreachable
from featherfed.proto.peer_text import escape

INTERRUPTED = 130  # a shell's exit status of a process that Ctrl-C ended


class Command(click.Command):
    """A command that is listed with the whole first paragraph of its help text."""

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the first paragraph of the help text."""
        return (self.help or "").split("\n\n")[0]


class Group(click.Group):
    """A group that lists its commands in order of definition instead of alphabetically."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in order of definition."""
        return list(self.commands)


def logging_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --verbose and --log-format to a command, and set up logging before it runs."""

    @click.option("--verbose", "-v", is_flag=True, help="Log debug messages too.")
    @click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        envvar="FEATHERFED_LOG_FORMAT",
        help="Readable lines, or JSON lines.",
    )
    @functools.wraps(command)
    def wrapper(*args: Any, verbose: bool, log_format: str, **kwargs: Any) -> None:
        log.set_up(verbose, log_format)
        command(*args, **kwargs)

    return wrapper


def print_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Print errors that a user can fix as one message; bugs keep their traceback."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except ModuleNotFoundError as error:
            module = error.name or ""
            if module.split(".")[0] == "featherfed":
                raise
            use = command.__name__
            _fail(f"{module} is not installed; {how_to_install(module, use)}")
        except (Rejected, Unreachable, CodecError) as error:
            _fail(str(error))
        except MemoryError:
            _fail("there is not enough memory on this machine, or its limits are too low")
        except KeyboardInterrupt as error:
            raise click.exceptions.Exit(INTERRUPTED) from error
        except ValueError as error:
            if not type(error).__module__.startswith("featherfed."):
                raise
            _fail(str(error))

    return wrapper


def _fail(message: str) -> None:
    # It may contain text from a peer, whose control characters must not reach the terminal.
    lines = [escape(line) for line in message.split("\n")]
    click.echo("featherfed: " + "\n".join(lines), err=True)
    raise click.exceptions.Exit(1)
