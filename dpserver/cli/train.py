"""`dpserver train`: from DeePMD-kit's input file and data to a model file."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpserver.cli import console
from dpserver.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from dpserver.train.config import TrainInput
    from dpserver.train.loop import StepReport, Trainer


def train(
    input_file: Annotated[
        Path, typer.Argument(help="DeePMD-kit's v2/v3 training input.", metavar="input.json", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model file to write.", metavar="FILE")] = Path("w.pt"),
    restart: Annotated[
        Path | None,
        typer.Option(help="Continue from this checkpoint, or the newest of this prefix.", metavar="model.ckpt[-N.pt]"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Seed of weights and batches, instead of that of the input.", show_default="training.seed"
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads.", envvar="DPSERVER_THREADS", show_default="all cores")
    ] = None,
) -> None:
    """Train a Deep Potential and write the model file.

    Checkpoints and the learning curve go to the current folder. Ctrl-C saves a checkpoint and stops.
    """
    import torch

    from dpserver.train.config import load_input
    from dpserver.train.loop import Trainer

    config = load_input(input_file)
    if seed is not None:
        if restart is not None:
            raise ConfigError("--seed and --restart exclude each other: a checkpoint continues with its own seed")
        config = config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})
    _check_output(output)
    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint = None if restart is None else _find_checkpoint(restart)
    with console.err.status("reading data and neighbour lists"):
        trainer = Trainer(config, Path.cwd(), checkpoint)
    _describe(trainer, checkpoint)
    with _signals() as should_stop:
        is_done = _run(trainer, config, None if checkpoint is None else trainer.step, should_stop)
        if is_done:
            trainer.save_model(output)
            _tell(f"model: {output}   (dpserver info {output}; dpserver --model {output} --port 31415)")
        else:
            command = f"dpserver train {input_file} --restart {config.training.save_ckpt}"
            _tell(f"stopped at step {trainer.step} of {config.training.numb_steps}; continue with: {command}")
    _draw(Path(config.training.disp_file))
    if not is_done:
        raise typer.Exit(console.INTERRUPTED)


def _check_output(output: Path) -> None:
    """Find out before the training whether its result can be written."""
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise ConfigError(f"--output {output}: expected a file name in an existing folder")


def _find_checkpoint(restart: Path) -> Path:
    from dpserver.train.loop import checkpoints

    if restart.is_file():
        return restart
    found = checkpoints(restart)
    if not found:
        raise ConfigError(f"--restart {restart}: found neither this checkpoint nor any {restart.name}-N.pt")
    return found[-1]


def _describe(trainer: Trainer, checkpoint: Path | None) -> None:
    n_frames = sum(s.data.n_frames for s in trainer.systems)
    n_valid = sum(s.data.n_frames for s in trainer.valid_systems)
    n_weights = sum(p.numel() for p in trainer.potential.parameters())
    p = trainer.potential
    _tell(
        f"{p.config.descriptor.type} for {' '.join(p.species)}: {n_weights} weights, {p.precision} precision, "
        f"{p.device}; {n_frames} frames to train on, {n_valid} to validate; seed {trainer.seed}"
    )
    if checkpoint is not None:
        _tell(f"continuing from {checkpoint} at step {trainer.step}")


def _run(trainer: Trainer, config: TrainInput, restart_step: int | None, should_stop: Callable[[], bool]) -> bool:
    """Train with a progress bar, the curve and, if asked for, TensorBoard; returns whether it came to its end."""
    from dpserver.train.board import Board
    from dpserver.train.curve import LearningCurve

    t = config.training
    has = {"e": True, "f": config.loss.has_force, "v": config.loss.has_virial}
    terms = ["total", *(term for term, is_on in has.items() if is_on)]
    with contextlib.ExitStack() as stack:
        board = stack.enter_context(Board(Path(t.tensorboard_log_dir), restart_step)) if t.tensorboard else None
        has_validation = bool(trainer.valid_systems)
        curve = (
            LearningCurve(t.disp_file, terms, has_validation=has_validation, restart_step=restart_step)
            if t.disp_training
            else None
        )
        progress, task = stack.enter_context(_progress(trainer.step, t.numb_steps))

        def on_step(report: StepReport) -> None:
            progress.update(task, completed=report.step)
            if not report.train:
                return
            progress.console.print(f"step {report.step:>8d}  {_errors(report)}", highlight=False, soft_wrap=True)
            if curve is not None:
                curve.write(report.step, report.lr, report.train, report.validation)
            if board is not None:
                board.write(report)

        return trainer.run(on_step, should_stop)


@contextlib.contextmanager
def _progress(first: int, last: int) -> Iterator[tuple[Progress, TaskID]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console.err, refresh_per_second=2) as progress:
        yield progress, progress.add_task("", total=last, completed=first)


class _Stop:
    """Set by the first SIGINT or SIGTERM; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.is_asked = False

    def __call__(self) -> bool:
        return self.is_asked

    def ask(self, number: int, _frame: object) -> None:
        self.is_asked = True
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        console.err.print("stopping after this step")


@contextlib.contextmanager
def _signals() -> Iterator[_Stop]:
    stop = _Stop()
    previous = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _errors(report: StepReport) -> str:
    """The errors of a step in the units people quote."""
    source, name = (report.validation, "valid") if report.validation else (report.train, "train")
    units = {"e": "meV/atom", "f": "meV/Å", "v": "meV/atom"}
    shown = (f"{term} {1e3 * source[term]:.3g} {unit}" for term, unit in units.items() if term in source)
    return f"{name} RMSE: {', '.join(shown)}; lr {report.lr:.1e}"


def _draw(curve: Path) -> None:
    """Draw the learning curve beside its file, where matplotlib is installed and there is a curve."""
    import importlib.util

    from dpserver.train import curve as curves

    if importlib.util.find_spec("matplotlib") is None or not curve.exists():
        _tell(f"learning curve: {curve} (its picture needs matplotlib: pip install 'dpserver[plot]')")
        return
    if not len(curves.read(curve)["step"]):
        return
    picture = curve.with_suffix(".png")
    curves.plot(curve, picture)
    _tell(f"learning curve: {curve}, {picture}")


def _tell(text: str) -> None:
    console.err.print(text, highlight=False, soft_wrap=True)
