"""`dpserver info`: what a model file holds, as a card for people or JSON for programs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Annotated, Any

import typer

from dpserver.cli import console


def info(
    model: Annotated[Path, typer.Argument(help="Model file.", metavar="w.pt", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a card.")] = False,
) -> None:
    """Show what a model file holds: species, network, training, errors. A file that cannot be used is refused."""
    from dpserver.models import checkpoint

    values = checkpoint.read(model)
    checkpoint.restore(values, str(model))
    described = describe(values)
    described = {"file": str(model), "bytes": model.stat().st_size, **described}
    if as_json:
        typer.echo(json.dumps(described, indent=2, allow_nan=False))
    else:
        _print_card(described)


def describe(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the dict of a model file into JSON-able values.

    Args:
        values: what `checkpoint.read` returns.

    Returns:
        The same keys, tensors turned into nested lists, and numbers JSON has no name for into null; of `state` only
        the shape of each tensor, and the sum of their elements beside it as `n_parameters`.
    """
    state = values["state"]
    described = {key: _plain(value) for key, value in values.items() if key != "state"}
    described["n_parameters"] = sum(tensor.numel() for tensor in state.values())
    described["state"] = {name: list(tensor.shape) for name, tensor in state.items()}
    return described


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _print_card(described: Mapping[str, Any]) -> None:
    from rich import box
    from rich.panel import Panel
    from rich.table import Table

    card = Table(box=None, show_header=False, pad_edge=False)
    card.add_column(style="bold cyan", no_wrap=True)
    card.add_column(overflow="fold")
    for name, text in _rows(described):
        card.add_row(name, text)
    card.add_row()
    for name, text in _training(described["training"]):
        card.add_row(name, text)
    title = f"[bold]{Path(described['file']).name}[/bold]"
    console.out.print(Panel(card, title=title, title_align="left", box=box.ROUNDED, expand=False))


def _rows(described: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The lines of the card about the model itself."""
    model = described["config"]["model"]
    descriptor, fitting = model["descriptor"], model["fitting_net"]
    yield "file", f"{described['file']}  ({described['bytes'] / 1e6:.2f} MB, format {described['version']})"
    yield "species", " ".join(described["species"])
    yield "trained on", _composition(described["template"])
    yield "closest (Å)", _distances(described["species"], described["statistics"]["min_distance"])
    yield "descriptor", f"{descriptor['type']}, cutoff {descriptor['rcut']:g} Å"
    if descriptor["type"] == "se_e2_a":
        yield "  switch", f"from {descriptor['rcut_smth']:g} Å"
        yield "  sel", _sizes(descriptor["sel"])
        yield "  embedding net", f"{_sizes(descriptor['neuron'])}, {descriptor['activation_function']}"
        yield "  axis columns", str(descriptor["axis_neuron"])
    else:
        yield "  full / radial", f"{_sizes(descriptor['sel_a'])} / {_sizes(descriptor['sel_r'])}"
    yield "fitting net", f"{_sizes(fitting['neuron'])}, {fitting['activation_function']}"
    yield "parameters", f"{described['n_parameters']:,}"
    yield "precision", str(described["config"]["precision"])


def _sizes(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _composition(template: Sequence[str] | None) -> str:
    if template is None:
        return "structures of different composition or order of atoms"
    parts = ", ".join(f"{count} {symbol}" for symbol, count in Counter(template).items())
    return f"{len(template)} atoms per structure: {parts}"


def _training(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """One line per entry; those of a nested entry stand side by side."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield key, ", ".join(f"{name} {_text(item)}" for name, item in value.items() if item is not None)
        elif isinstance(value, list):
            yield key, ", ".join(map(_text, value))
        else:
            yield key, _text(value)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _distances(species: Sequence[str], distances: Sequence[Sequence[float | None]]) -> str:
    """The upper triangle of the table, as `O-O 2.380, O-H 0.860`."""
    pairs = combinations_with_replacement(range(len(species)), 2)
    return ", ".join(
        f"{species[a]}-{species[b]} {'never met' if (d := distances[a][b]) is None else f'{d:.3f}'}" for a, b in pairs
    )
