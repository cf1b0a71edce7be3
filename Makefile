# Every target sets up what it needs in .venv by itself; the second time that takes no time.
#
#   make demo    path-integral water with i-PI, about five minutes, leaves demo/water.png
#   make test    lint and all tests
#
# PYTHON=python3.12 chooses the interpreter.

PYTHON ?=
VENV   := .venv
PEER   := .venv-peer
BIN    := $(VENV)/bin

.PHONY: help venv demo test test-peers chaos bench bench-peers science gpu gpu-packages lint format docs clean
.DEFAULT_GOAL := help

help:
	@echo 'make venv    the environment that all others use, .venv; a minute or two'
	@echo 'make demo    path-integral water with i-PI; leaves demo/water.png'
	@echo 'make test    lint and all tests'
	@echo 'make test-peers  the tests beside DeePMD-kit; installs it into $(PEER), some GB'
	@echo 'make chaos   long runs of faults and of the protocol, about twenty minutes; prints its seed'
	@echo 'make gpu     compare and time the GPU path with the python3 of this machine, its torch and its CUDA; minutes'
	@echo 'make gpu-packages  fetch what such a machine may lack, to be run where there is a network; GPU_PYTHON=3.12'
	@echo 'make bench   time the CPU path, a wave of beads and steps of i-PI; adds to benchmarks/results, half an hour'
	@echo 'make science  reproduce what the method claims, a working day; science-water and other parts alone; QUICK=1'
	@echo 'make bench-peers MODEL=model.dp  time the same weights beside DeePMD-kit and LAMMPS, found by DPSERVER_PEER and'
	@echo '             DPSERVER_PEER_MODEL (benchmarks/peers.py says what these are); twenty minutes'
	@echo 'make lint    ruff, mypy and the layer contracts'
	@echo 'make format  rewrite the sources as ruff wants them'
	@echo 'make docs    build the documentation into site/'
	@echo 'make clean   remove what these targets made'

venv: $(VENV)/ready

demo: $(VENV)/ready
	$(BIN)/dpserver demo

test: lint $(VENV)/ready-ipi
	$(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist loadgroup --no-loadscope-reorder

test-peers: $(VENV)/ready $(PEER)/ready
	DPSERVER_PEER=$(PEER) $(BIN)/pytest -m peer tests/peers

chaos: $(VENV)/ready
	$(BIN)/pytest -m chaos tests/chaos

gpu:
	PYTHONPATH=. $(or $(PYTHON),python3) benchmarks/gpu.py

# Wheels of Linux on x86_64 for the Python of a machine with a GPU; its own torch, triton and numpy are taken as they are.
# numba has to fit its numpy: where it is missing, name it with what it needs, GPU_MORE='numba llvmlite'.
GPU_PYTHON ?= 3.12
GPU_MORE ?=
GPU_PIP := -m pip install --disable-pip-version-check --no-warn-conflicts -c constraints.txt --target .gpu/packages \
    --only-binary=:all: --python-version $(GPU_PYTHON) --implementation cp --platform manylinux_2_28_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64

gpu-packages:
	rm -rf .gpu/packages
	$(or $(PYTHON),python3) $(GPU_PIP) pydantic
	$(or $(PYTHON),python3) $(GPU_PIP) --no-deps vesin $(GPU_MORE)

bench: $(VENV)/ready
	$(BIN)/python benchmarks/cpu.py
	$(BIN)/python benchmarks/wave.py
	$(BIN)/python benchmarks/message.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/mpiexec -n 2 $(BIN)/python benchmarks/ranks.py
	$(BIN)/python benchmarks/large.py
	$(BIN)/python benchmarks/scaling_model.py

# Parts: water molecules smoothness long-range linear-cost quantum, and pages. What is interrupted goes on from there.
science: science-all

science-%: $(VENV)/ready
	$(BIN)/python -m benchmarks.science $* $(if $(and $(QUICK),$(filter-out pages,$*)),--quick)

bench-peers: $(VENV)/ready
	$(if $(MODEL),,$(error name the weights: make bench-peers MODEL=model.dp))
	$(BIN)/python benchmarks/peers.py $(MODEL)

lint: $(VENV)/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/ready-docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(PEER) .gpu site demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/ready: pyproject.toml constraints.txt
	@set -eu; \
	good='import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))'; found=''; \
	for p in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	    if "$$p" -c "$$good" >/dev/null 2>&1; then found=$$p; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo 'error: dpserver needs Python 3.11 or newer with venv and ensurepip; tried' \
	        '$(or $(PYTHON),python3 python3.13 python3.12 python3.11).' \
	        'Install one (Debian: apt install python3-venv) or name it: make PYTHON=/path/to/python' >&2; exit 1; \
	fi; \
	echo "setting up $(VENV) with $$("$$found" --version), a few minutes the first time"; \
	"$$found" -m venv $(VENV)
	@# torch by itself: pip then takes a local CPU wheel of this version where one is offered.
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/ready-ipi: $(VENV)/ready tests/integration/ipi-versions.txt
	@grep -v '^#' tests/integration/ipi-versions.txt | while read -r ipi others; do \
	    folder=$(VENV)/ipi/$${ipi#ipi==}; rm -rf "$$folder"; \
	    $(BIN)/python -m pip install --disable-pip-version-check --no-deps --target "$$folder" $$ipi $$others </dev/null \
	    || { rm -rf "$$folder"; echo "note: $$ipi cannot be installed here; the tests with it are skipped" >&2; }; \
	done
	@touch $@

# DeePMD-kit with both backends, and dpserver beside it. Its library of operators is built for one version of PyTorch and
# stops it from loading another; without that file everything works but compressed models and LAMMPS with a .pth.
$(PEER)/ready: $(VENV)/ready tests/peers/requirements.txt
	$(BIN)/python -m venv --clear $(PEER)
	$(PEER)/bin/python -m pip install --disable-pip-version-check -c constraints.txt torch
	$(PEER)/bin/python -m pip install --disable-pip-version-check -r tests/peers/requirements.txt
	rm -f $(PEER)/lib/python3*/site-packages/deepmd/lib/libdeepmd_op_pt.so
	$(PEER)/bin/python -m pip install --disable-pip-version-check -e .
	@touch $@

$(VENV)/ready-docs: $(VENV)/ready
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@
