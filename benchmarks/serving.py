"""Milliseconds per i-PI step of path-integral water, in every mode and with every engine, in one run.

    python benchmarks/serving.py [--beads 1,8,32] [--modes sockets,batch,…] [--models zero,water]
        [--peer VENV --peer-model water.pb --own-model water.pt]

A case is i-PI on 192 atoms with so many beads, and an engine behind it: ours, i-PI's own `i-pi-driver-py` with a PES
that costs nothing, or as many `dp_ipi` processes as there are cores. Each figure is the median over the blocks of one
run, after a warm-up; the result goes to `results/serving.json`. `--peer` names a virtual environment with DeePMD-kit,
`--peer-model` and `--own-model` the same weights for it and for us.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import records

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WATER = ROOT / "examples" / "water"
BIN = Path(sys.executable).parent
BLOCKS = 7
"""Blocks of steps a run is cut into: the figure is the median of their means."""

CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Mode:
    """A way to connect an engine to i-PI.

    Attributes:
        xml: the force field of i-PI's input; `{address}`, `{beads}`, `{pes}` and `{parameters}` are filled in.
        is_single: whether one connection carries all beads of a step.
    """

    xml: str
    is_single: bool = True


_SOCKET = (
    '<ffsocket name="dp" mode="{kind}"><address> {{address}} </address><latency> 1e-3 </latency>{batch}</ffsocket>'
)
_BATCH = "<batch_size> {beads} </batch_size>"

MODES = {
    "sockets": Mode(_SOCKET.format(kind="unix", batch=""), is_single=False),
    "batch": Mode(_SOCKET.format(kind="unix", batch=_BATCH)),
    "shm": Mode(_SOCKET.format(kind="shm", batch=""), is_single=False),
    "shm-batch": Mode(_SOCKET.format(kind="shm", batch=_BATCH)),
    "ffdirect": Mode(
        '<ffdirect name="dp" threaded="True"><pes> {pes} </pes>{path}<parameters> {parameters} </parameters>'
        "<latency> 1e-3 </latency><batch_size> {beads} </batch_size></ffdirect>"
    ),
    "ffmpi": Mode('<ffmpi name="dp"><latency> 1e-3 </latency><batch_size> {beads} </batch_size></ffmpi>'),
}

_INPUT = """<simulation verbosity="quiet" safe_stride="100000">
  <output prefix="out"><properties stride="100" filename="out"> [ step, potential ] </properties></output>
  <total_steps> {steps} </total_steps>
  <prng><seed> 31415 </seed></prng>
  {forcefield}
  <system>
    <initialize nbeads="{beads}">
      <file mode="ase"> {structure} </file>
      <velocities mode="thermal" units="kelvin"> 300 </velocities>
    </initialize>
    <forces> <force forcefield="dp"/> </forces>
    <motion mode="dynamics">
      <dynamics mode="nve"><timestep units="femtosecond"> 0.1 </timestep></dynamics>
    </motion>
    <ensemble> <temperature units="kelvin"> 300 </temperature> </ensemble>
  </system>
</simulation>
"""


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    engine: str
    model: str
    mode: str
    beads: int


def commands(case: Case, address: str, own_model: Path, peer: Path | None, peer_model: Path | None) -> list[list[str]]:
    """The engine processes of a case; none where i-PI holds the engine itself."""
    mode = MODES[case.mode]
    kind = "shm" if case.mode.startswith("shm") else "unix"
    if case.engine == "dp_ipi":
        assert peer is not None
        assert peer_model is not None
        return [[str(peer / "bin" / "dp_ipi"), "dp_ipi.json"]] * CORES
    if case.engine == "i-pi-driver-py":
        driver = [sys.executable, str(BIN / "i-pi-driver-py"), "-m", "dummy"]
        where = ["--mpi"] if case.mode == "ffmpi" else ["-u", "-a", address, *(["--shm"] if kind == "shm" else [])]
        return [driver + where] * (1 if mode.is_single else case.beads)
    if case.model == "zero":
        return [[sys.executable, str(HERE / "zero.py"), *(["mpi"] if case.mode == "ffmpi" else [f"{kind}:{address}"])]]
    serve = [
        str(BIN / "dpserver"),
        "--model",
        str(own_model),
        "--template",
        str(WATER / "water.xyz"),
        "--log-level",
        "warning",
    ]
    return [serve + (["--mpi-driver"] if case.mode == "ffmpi" else ["--connect", f"{kind}:{address}", "--once"])]


def forcefield(case: Case, address: str, own_model: Path) -> str:
    """The force field of i-PI's input."""
    pes, path, parameters = "custom", f"<pes_path> {ROOT / 'drivers/ipi/dp_pes.py'} </pes_path>", "{}"
    if case.engine == "i-pi-driver-py":
        pes, path = "dummy", ""
    elif case.model == "zero":
        path = f"<pes_path> {HERE / 'zero.py'} </pes_path>"
        parameters = "{model: zero, template: " + str(WATER / "water.xyz") + "}"
    else:
        parameters = f"{{model: {own_model}, template: {WATER / 'water.xyz'}}}"
    return MODES[case.mode].xml.format(address=address, beads=case.beads, pes=pes, path=path, parameters=parameters)


def run(
    ipi: Sequence[str], engines: Sequence[list[str]], listener: Path, folder: Path, environment: dict[str, str]
) -> None:
    """Run i-PI, and its engines once it listens, to the end; an engine that fails ends both."""
    with (folder / "run.log").open("w") as log, ExitStack() as stack:

        def start(line: Sequence[str]) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                line, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            stack.callback(_end, process)
            return process

        server = start(ipi)
        while engines and server.poll() is None and not listener.exists():  # i-PI's own driver does not wait for it
            time.sleep(0.05)
        clients = [start(line) for line in engines]
        while server.poll() is None and not any(client.poll() for client in clients):
            time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait a little for a process that leaves by itself, then end it with its children."""
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def measure(case: Case, steps: int, own_model: Path, peer: Path | None, peer_model: Path | None) -> float:
    """Run a case and return the median of its blocks, ms per step."""
    warm = max(12, steps // 5)
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    if case.engine == "dp_ipi":
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "DP_INTRA_OP_PARALLELISM_THREADS"), "1")
        environment |= {"DP_INTER_OP_PARALLELISM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        address = f"bench_{os.getpid()}"
        lines = commands(case, address, own_model, peer, peer_model)
        (folder / "input.xml").write_text(
            _INPUT.format(
                steps=warm + steps,
                forcefield=forcefield(case, address, own_model),
                beads=case.beads,
                structure=WATER / "water.xyz",
            )
        )
        if case.engine == "dp_ipi":
            _write_dp_ipi(folder, address, Path(str(peer_model)))
        ipi = [sys.executable, str(HERE / "ipi_steps.py"), "input.xml", "steps.json"]
        if case.mode == "ffmpi":
            ranks = [part for line in lines for part in (":", "-n", "1", *line)]
            ipi, lines = [str(BIN / "mpiexec"), "-n", "1", *ipi, *ranks], []
        elif case.mode == "ffdirect":
            lines = []
        run(ipi, lines, Path(f"/tmp/ipi_{address}"), folder, environment)
        result = folder / "steps.json"
        if not result.exists():
            raise RuntimeError(f"{case} did not finish\n{(folder / 'run.log').read_text()[-3000:]}")
        seconds = json.loads(result.read_text())[warm:]
    size = len(seconds) // BLOCKS
    blocks = [statistics.fmean(seconds[k * size : (k + 1) * size]) for k in range(BLOCKS)]
    return 1e3 * statistics.median(blocks)


def _write_dp_ipi(folder: Path, address: str, model: Path) -> None:
    """The input of DeePMD-kit's i-PI client, and the structure it takes the species from."""
    import ase.io

    atoms = ase.io.read(WATER / "water.xyz")
    ase.io.write(folder / "conf.xyz", atoms, format="extxyz")
    settings = {
        "verbose": False,
        "use_unix": True,
        "port": 31415,
        "host": address,
        "graph_file": str(model.resolve()),
        "coord_file": "conf.xyz",
        "atom_type": {"O": 0, "H": 1},
    }
    (folder / "dp_ipi.json").write_text(json.dumps(settings))


def cases(modes: Sequence[str], models: Sequence[str], beads: Sequence[int], has_peer: bool) -> Iterator[Case]:
    """All that makes sense: i-PI's own driver has no model of water, dp_ipi speaks over one socket each."""
    for n in beads:
        for mode in modes:
            if "zero" in models:
                yield Case("dpserver", "zero", mode, n)
                yield Case("i-pi-driver-py", "zero", mode, n)
            if "water" in models:
                yield Case("dpserver", "water", mode, n)
        if has_peer and "water" in models:
            yield Case("dp_ipi", "water", "sockets", n)


def main() -> None:
    """Measure the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beads", default="1,8,32")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--models", default="zero,water")
    parser.add_argument("--own-model", type=Path, default=WATER / "w.pt")
    parser.add_argument("--peer", type=Path, help="virtual environment with DeePMD-kit")
    parser.add_argument("--peer-model", type=Path, help="the weights of --own-model as a .pb")
    parser.add_argument("--steps", type=int, default=70, help="timed steps of a model; five times as many of zero cost")
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    if (args.peer is None) != (args.peer_model is None):
        parser.error("--peer and --peer-model belong together")
    beads = [int(n) for n in args.beads.split(",")]
    rows = []
    for case in cases(args.modes.split(","), args.models.split(","), beads, args.peer is not None):
        steps = 5 * args.steps if case.model == "zero" else args.steps
        ms = measure(case, steps, args.own_model.resolve(), args.peer, args.peer_model)
        rows.append({**vars(case), "ms_per_step": round(ms, 3)})
        print(f"{case.engine:15} {case.model:6} {case.mode:10} {case.beads:3} beads  {ms:9.2f} ms/step", flush=True)
    if not args.no_record:
        records.append(
            "serving",
            {"atoms": 192, "cores": CORES, "blocks": BLOCKS, "model": args.own_model.name, "cases": rows},
        )


if __name__ == "__main__":
    main()
