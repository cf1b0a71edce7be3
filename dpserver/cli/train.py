"""`dpserver train`: from DeePMD-kit's input file and data to a model file."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpserver.cli import beside, console, options
from dpserver.cli.change_bias import describe
from dpserver.errors import ConfigError, OutputError
from dpserver.files import check_folder, check_output

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from dpserver.train.config import TrainInput
    from dpserver.train.loop import StepReport, Trainer
    from dpserver.train.pretrained import Pretrained

_START = "Where to start from"


def _refuse(advice: str) -> Callable[[object], None]:
    """For an option of `dp train` that has no place here."""

    def check(value: object) -> None:
        if value:
            raise ConfigError(advice)

    return check


def train(
    input_file: Annotated[
        Path,
        typer.Argument(
            help="DeePMD-kit's v2/v3 training input, JSON or YAML.", metavar="input.json", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model file to write.", metavar="FILE")] = Path("w.pt"),
    restart: Annotated[
        Path | None,
        typer.Option(
            "--restart",
            "-r",
            help="Continue from this checkpoint, or the newest of this prefix.",
            metavar="model.ckpt[-N.pt]",
            rich_help_panel=_START,
        ),
    ] = None,
    finetune: Annotated[
        Path | None,
        typer.Option(
            "--finetune",
            "-t",
            help="Start from a model, of dpserver or DeePMD-kit, and fit the energies of its species anew.",
            metavar="MODEL",
            rich_help_panel=_START,
        ),
    ] = None,
    init_model: Annotated[
        Path | None,
        typer.Option(
            "--init-model",
            "-i",
            "--init-frz-model",
            "-f",
            help="Start from a model as it is.",
            metavar="MODEL",
            rich_help_panel=_START,
        ),
    ] = None,
    use_pretrain_script: Annotated[
        bool,
        typer.Option(
            "--use-pretrain-script",
            help="Take descriptor and fitting net of that model, whatever the input says of them.",
            rich_help_panel=_START,
        ),
    ] = False,
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            "--model-branch",
            help="Which model of a multi-task checkpoint to start from.",
            metavar="NAME",
            rich_help_panel=_START,
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Seed of weights and batches, instead of that of the input.", show_default="training.seed"
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            callback=options.check_threads,
            help="CPU threads.",
            metavar="N",
            envvar="DPSERVER_THREADS",
            show_default="all cores",
        ),
    ] = None,
    skip_neighbor_stat: Annotated[bool, typer.Option("--skip-neighbor-stat", hidden=True)] = False,
    log_level: Annotated[str | None, typer.Option("--log-level", "-v", hidden=True)] = None,
    mpi_log: Annotated[str | None, typer.Option("--mpi-log", "-m", hidden=True)] = None,
    log_path: Annotated[
        Path | None,
        typer.Option(
            "--log-path",
            "-l",
            hidden=True,
            callback=_refuse("--log-path: what is said goes to stderr; write it to a file with 2> train.log"),
        ),
    ] = None,
    force_load: Annotated[
        bool,
        typer.Option(
            "--force-load",
            hidden=True,
            callback=_refuse("--force-load: weights are taken over whole or not at all; leave it out"),
        ),
    ] = False,
) -> None:
    """Train a Deep Potential and write the model file.

    Checkpoints and the learning curve go to the current folder. Ctrl-C saves a checkpoint and stops.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's threads wait often: spinning, they hinder each other
    import torch

    from dpserver.train.loop import Trainer

    _check_output(output)
    if seed is not None and restart is not None:
        raise ConfigError("--seed and --restart exclude each other: a checkpoint continues with its own seed")
    start = _Start.choose(restart, finetune, init_model, head)
    config = start.read(input_file, replaces=use_pretrain_script)
    if seed is not None:
        config = config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})
    _check_places(config)
    if threads is not None:
        torch.set_num_threads(threads)
    with console.err.status("reading data and neighbour lists"):
        trainer = Trainer(config, Path.cwd(), start.checkpoint, start.pretrained)
    _describe(trainer, config, start)
    with _signals() as should_stop, _weights_kept(trainer, input_file, output):
        is_done = _run(trainer, config, None if start.checkpoint is None else trainer.step, should_stop)
        if is_done:
            if config.training.change_bias_after_training:
                _tell_bias(trainer)
            trainer.save_model(output)
            _tell(f"model: {output}   (dpserver info {output}; {beside.how_to_serve(trainer.potential, output)})")
        else:
            how = _how_to_continue(input_file, output, config.training.checkpoint_prefix)
            _tell(f"stopped at step {trainer.step} of {trainer.numb_steps}; {how}")
    _draw(Path(config.training.disp_file))
    if not is_done:
        raise typer.Exit(console.INTERRUPTED)


@dataclass(frozen=True)
class _Start:
    """Where a training starts from: nowhere, a checkpoint, or a model."""

    checkpoint: Path | None = None
    pretrained: Pretrained | None = None

    @classmethod
    def choose(cls, restart: Path | None, finetune: Path | None, init_model: Path | None, head: str | None) -> _Start:
        """From the options; at most one of them says where."""
        from dpserver.train.pretrained import Pretrained

        named = {"--restart": restart, "--finetune": finetune, "--init-model": init_model}
        given = {option: path for option, path in named.items() if path is not None}
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} exclude each other; a training starts from one place")
        if head is not None and (not given or restart is not None):
            raise ConfigError("--head names a model of the file of --finetune or --init-model; give one of them, too")
        if restart is not None:
            return cls(_find_checkpoint(restart, "--restart"))
        if finetune is not None:
            return cls(None, Pretrained.read(_find_checkpoint(finetune, "--finetune"), head))
        if init_model is not None:
            path = _find_checkpoint(init_model, "--init-model")
            return cls(None, Pretrained.read(path, head, refits_bias=False))
        return cls()

    def read(self, input_file: Path, *, replaces: bool) -> TrainInput:
        """The input, completed with the network of the model or checkpoint."""
        from dpserver.train.config import load_input
        from dpserver.train.pretrained import Pretrained

        known = self.pretrained if self.checkpoint is None else Pretrained.read(self.checkpoint)
        if known is None:
            if replaces:
                raise ConfigError("--use-pretrain-script needs a model: give --finetune or --init-model, too")
            return load_input(input_file)
        return load_input(input_file, known.model, str(known.path), replaces=replaces)


def _check_output(output: Path) -> None:
    """Find out before the training whether its result can be written."""
    if output.suffix == ".json":
        raise ConfigError(f"--output {output}: this is where the model goes, w.pt by default, not a copy of the input")
    check_output(output, "--output")


def _check_places(config: TrainInput) -> None:
    """Find out before the training whether what it leaves on its way can be written."""
    t = config.training
    places = {"training.save_ckpt": t.checkpoint_prefix}
    if t.disp_training:
        places["training.disp_file"] = Path(t.disp_file)
    if t.tensorboard:
        places["training.tensorboard_log_dir"] = Path(t.tensorboard_log_dir)
    for key, place in places.items():
        check_folder(place.parent, f"{key} {place}")


def _how_to_continue(input_file: Path, output: Path, checkpoint: Path) -> str:
    """The command that goes on from a checkpoint, or the newest of a prefix."""
    return f"continue with: dpserver train {input_file} -o {output} --restart {checkpoint}"


@contextlib.contextmanager
def _weights_kept(trainer: Trainer, input_file: Path, output: Path) -> Iterator[None]:
    """Say where the weights are when a file of the training cannot be written."""
    try:
        yield
    except OutputError as error:
        if trainer.saved is None:
            raise OutputError(f"{error}; there is no checkpoint yet, start again") from None
        how = _how_to_continue(input_file, output, trainer.saved)
        raise OutputError(f"{error}; the newest weights are in {trainer.saved}, {how}") from None


def _find_checkpoint(path: Path, option: str) -> Path:
    """A file, or the newest checkpoint of a prefix."""
    from dpserver.train.loop import checkpoints

    if path.is_file():
        return path
    found = checkpoints(path)
    if not found:
        raise ConfigError(f"{option} {path}: found neither this file nor any checkpoint {path.name}-N.pt")
    return found[-1]


def _describe(trainer: Trainer, config: TrainInput, start: _Start) -> None:
    n_frames = sum(s.data.n_frames for s in trainer.systems)
    n_valid = sum(s.data.n_frames for s in trainer.valid_systems)
    n_weights = sum(p.numel() for p in trainer.potential.parameters())
    p = trainer.potential
    _tell(
        f"{p.config.descriptor.type} for {' '.join(p.species)}: {n_weights} weights, {p.precision} precision, "
        f"{p.device}; {n_frames} frame{'s' * (n_frames != 1)} to train on, {n_valid} to validate; seed {trainer.seed}"
    )
    _tell(f"training step: {trainer.evaluator.describe()}")
    for note in trainer.notes:
        _tell(f"warning: {note}")
    if start.checkpoint is not None:
        is_done = trainer.step == trainer.numb_steps
        rest = f" of {trainer.numb_steps}: nothing is left to train, only the model to be written" if is_done else ""
        _tell(f"continuing from {start.checkpoint} at step {trainer.step}{rest}")
    if start.pretrained is not None:
        _tell(f"starting from {start.pretrained.path}")
        _tell_bias(trainer)
    if config.adopts_charges:
        source = start.checkpoint or "the model"
        _tell(f"the charges of {source} go on, since the input has no section model.electrostatics")


def _tell_bias(trainer: Trainer) -> None:
    """What fitting the energies of the species anew has done."""
    if trainer.bias_change is not None:
        _tell(describe(trainer.bias_change, trainer.potential.species))


def _run(trainer: Trainer, config: TrainInput, restart_step: int | None, should_stop: Callable[[], bool]) -> bool:
    """Train with a progress bar, the curve and, if asked for, TensorBoard; returns whether it came to its end."""
    from dpserver.train.board import Board
    from dpserver.train.curve import LearningCurve

    t = config.training
    with contextlib.ExitStack() as stack:
        board = stack.enter_context(Board(Path(t.tensorboard_log_dir), restart_step)) if t.tensorboard else None
        has_validation = bool(trainer.valid_systems)
        curve = (
            LearningCurve(t.disp_file, trainer.columns, has_validation=has_validation, restart_step=restart_step)
            if t.disp_training
            else None
        )
        progress, task = stack.enter_context(_progress(trainer.step, trainer.numb_steps))

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
    units = {"e": "meV/atom", "f": "meV/Å", "v": "meV/atom", "ae": "meV", "pf": "meV/Å", "gf": "meV/Å"}
    shown = [f"{term} {1e3 * source[term]:.3g} {unit}" for term, unit in units.items() if term in source]
    shown += [f"{term} {value:.3g}" for term, value in source.items() if term not in units and term != "total"]
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
