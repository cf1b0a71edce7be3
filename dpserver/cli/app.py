"""The command `dpserver`: collects the commands and turns errors into exit codes."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from dpserver import __version__, guard
from dpserver.cli import console, ranks
from dpserver.cli.bench import bench
from dpserver.cli.change_bias import change_bias
from dpserver.cli.committee import committee
from dpserver.cli.convert import export_model, import_model
from dpserver.cli.demo import demo
from dpserver.cli.info import info
from dpserver.cli.mpi import is_driver, whole_job
from dpserver.cli.serve import serve
from dpserver.cli.status import status
from dpserver.cli.tabulate import tabulate
from dpserver.cli.test import test
from dpserver.cli.train import train
from dpserver.errors import ConfigError, DPServerError, OutputError

_HELP = """Serve a Deep Potential to MD codes that listen for forces over the i-PI socket.

[bold]dpserver --model w.pt --port 31415[/bold]   dial port 31415 and answer
[bold]dpserver --model w.pt --unix water[/bold]   the same over /tmp/ipi_water

These are short for [bold]dpserver serve[/bold]; all options: [bold]dpserver serve --help[/bold].
"""

app = typer.Typer(
    name="dpserver",
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _command in (serve, status, train, committee, tabulate, test, info, bench, demo):
    app.command()(_command)
app.command("change-bias")(change_bias)
app.command("import")(import_model)
app.command("export")(export_model)

_COMMANDS = {info.name or info.callback.__name__ for info in app.registered_commands if info.callback is not None}
_OWN_OPTIONS = ("-h", "--help", "--version", "--install-completion", "--show-completion")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        console.out.print(f"dpserver {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def with_command(arguments: list[str]) -> list[str]:
    """Put `serve` in front of options that stand alone: `dpserver --model w.pt` serves."""
    if arguments and arguments[0].startswith("-") and arguments[0].partition("=")[0] not in _OWN_OPTIONS:
        return ["serve", *arguments]
    return arguments


def _fail(error: DPServerError) -> NoReturn:
    console.show_error(error)
    sys.exit(console.exit_code(error))


def main() -> None:
    """Run the command line: the entry point of the script `dpserver`."""
    # Read by OpenMP when torch is loaded. By default its idle threads spin and take the cores from the MD code and all
    # else beside us: 8 boxes of 64 waters on two cores, shared with five other processes, took 5 s instead of 0.2 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = with_command(sys.argv[1:])
    if _COMMANDS.intersection(arguments[:1]) and not {"-h", "--help"}.intersection(arguments):
        try:
            ranks.check_command(arguments[0])
        except ConfigError as error:  # nobody has joined the job: there is none to end
            _fail(error)
    if guard.job_size() > 1 and arguments[:1] == ["serve"]:
        guard.stand_by()
    with whole_job(arguments):
        try:
            if guard.job_rank() > 0 and arguments[:1] == ["serve"] and not is_driver(arguments):
                ranks.work()
            app(arguments, prog_name="dpserver")
        except DPServerError as error:
            _fail(error)
        except OSError as error:
            if not console.is_of_stdout(error):
                raise
            console.give_up_stdout()
            _fail(OutputError(f"cannot write to standard output: {error.strerror}"))
