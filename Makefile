# Every target sets up what it needs in .venv by itself; the second time that takes no time.
#
#   make demo    path-integral water with i-PI, about five minutes, leaves demo/water.png
#   make test    lint and all tests
#
# PYTHON=python3.12 chooses the interpreter.

PYTHON ?=
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: help demo test chaos bench lint format docs clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo    path-integral water with i-PI; leaves demo/water.png'
	@echo 'make test    lint and all tests'
	@echo 'make chaos   long runs of faults and of the protocol, about twenty minutes; prints its seed'
	@echo 'make bench   time the CPU path, a wave of beads and steps of i-PI; adds to benchmarks/results, half an hour'
	@echo 'make lint    ruff, mypy and the layer contracts'
	@echo 'make format  rewrite the sources as ruff wants them'
	@echo 'make docs    build the documentation into site/'
	@echo 'make clean   remove what these targets made'

demo: $(VENV)/ready
	$(BIN)/dpserver demo

test: lint $(VENV)/ready-ipi
	$(BIN)/pytest

chaos: $(VENV)/ready
	$(BIN)/pytest -m chaos tests/chaos

bench: $(VENV)/ready
	$(BIN)/python benchmarks/cpu.py
	$(BIN)/python benchmarks/wave.py
	$(BIN)/python benchmarks/serving.py

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
	rm -rf $(VENV) site demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

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

$(VENV)/ready-docs: $(VENV)/ready
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@
