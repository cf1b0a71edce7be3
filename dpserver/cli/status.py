"""`dpserver status`: how the daemons of this user fare."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dpserver.cli import console
from dpserver.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType

_REFRESH_SECONDS = 1.0
_NOBODY = 1
_WIDE = 200

Snapshot = Mapping[str, Any]


def status(
    pid: Annotated[
        int | None, typer.Option(help="Only the daemon with this process number.", show_default=False)
    ] = None,
    control: Annotated[
        Path | None,
        typer.Option(
            help="Control socket of a daemon that was started with --control.", metavar="PATH", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a list with one object a daemon.")] = False,
    is_watching: Annotated[bool, typer.Option("--watch", help="Show it anew every second until Ctrl-C.")] = False,
) -> None:
    """Show how the running daemons of this user fare: the figures of the last ten seconds, endpoints, totals."""
    if as_json and is_watching:
        raise ConfigError("--json prints once and --watch again and again; give one of them")
    if pid is not None and control is not None:
        raise ConfigError("--pid and --control both name a daemon; give one of them")
    if is_watching:
        _watch(pid, control)
        return
    snapshots = _ask(pid, control)
    if as_json:
        typer.echo(json.dumps(snapshots, indent=2))
    if not snapshots:
        console.err.print(_nobody(pid, control), soft_wrap=True, highlight=False)
        raise typer.Exit(_NOBODY)
    if not as_json:
        # A file or a pipe has no width, whatever COLUMNS says; lines that are cut cannot be searched.
        (console.out if console.out.is_terminal else Console(width=_WIDE)).print(_page(snapshots))


def _ask(pid: int | None, control: Path | None) -> list[Snapshot]:
    """Ask the daemons that are meant; one that does not answer in time has nothing but its number and that."""
    from dpserver.transport.control import ask, find_sockets

    paths = [control] if control is not None else [p for p in find_sockets() if pid is None or p.name == str(pid)]
    snapshots = []
    for path in paths:
        answer = ask(path)
        if answer:
            snapshots.append(json.loads(answer))
        elif answer is not None:
            snapshots.append({"pid": int(path.name) if path.name.isdigit() else None, "phase": "does not answer"})
    return snapshots


def _nobody(pid: int | None, control: Path | None) -> str:
    if control is not None:
        return f"no daemon listens at {control}"
    which = "" if pid is None else f" with the process number {pid}"
    return f"no daemon of this user{which} is running here (--control finds one that was started with --control PATH)"


def _watch(pid: int | None, control: Path | None) -> None:
    from rich.live import Live

    try:
        with Live(console=console.out, auto_refresh=False) as live:
            while True:
                snapshots = _ask(pid, control)
                live.update(_page(snapshots) if snapshots else _nobody(pid, control), refresh=True)
                sleep(_REFRESH_SECONDS)
    except KeyboardInterrupt:
        return


def _page(snapshots: Sequence[Snapshot]) -> RenderableType:
    from rich.console import Group

    daemons = [Group(*_daemon(snapshot)) for snapshot in snapshots]
    return Group(*(part for daemon in daemons for part in (daemon, "")))


def _daemon(snapshot: Snapshot) -> Iterator[RenderableType]:
    """What is shown of one daemon."""
    from rich.text import Text

    from dpserver.monitor.figures import Figures

    head = Text.assemble((f"dpserver {snapshot['pid']}", "bold cyan"), f": {snapshot['phase']}")
    if "recent" not in snapshot:
        yield head
        return
    head.append(f" for {timedelta(seconds=round(snapshot['uptime_seconds']))}")
    if snapshot["model"] is not None:
        head.append(f", {snapshot['model']}")
    if snapshot["device"] is not None:
        head.append(f" on {snapshot['device']}")
    if snapshot.get("ranks") is not None:
        head.append(f", {snapshot['ranks']}")
    if snapshot["memory_bytes"] is not None:
        head.append(f", {snapshot['memory_bytes'] / 1e6:,.0f} MB")
    yield head
    figures = Figures(**snapshot["recent"])
    yield Text(f"last {figures.seconds:.0f} s: {figures.pace}")
    yield Text(f"time: {figures.shares}")
    yield Text(_totals(snapshot))
    yield _endpoints(snapshot["endpoints"])


def _totals(snapshot: Snapshot) -> str:
    totals, refused = snapshot["totals"], snapshot["refused"]
    parts = [f"{totals['frames']:,} evaluations in {totals['batches']:,} batches"]
    replies = snapshot["histograms"]["reply_seconds"]
    if replies["count"]:
        parts.append(f"answers after {1e3 * replies['sum'] / replies['count']:.3g} ms on average")
    parts += [f"{count:,} refused ({kind})" for kind, count in refused.items() if count]
    return f"in all: {', '.join(parts)}"


def _endpoints(endpoints: Sequence[Snapshot]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("endpoint", overflow="fold")
    for name in ("open", "reconnects", "evaluations", "refused", "per step", "split"):
        table.add_column(name, justify="right")
    for endpoint in endpoints:
        counts = [f"{endpoint[key]:,}" for key in ("connections", "reconnects", "evaluations", "refused")]
        waves = ["-", "-"]
        if endpoint["wave_frames"] is not None:
            waves = [str(endpoint["wave_frames"]), f"{endpoint['waves_split']:.0%}"]
        table.add_row(endpoint["endpoint"], *counts, *waves)
    return table
