# `make demo` and `make test` do all their own set-up: a virtual environment in .venv, pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

.PHONY: help setup demo quick test lint docs benchmark clean

help:
	@echo "make demo       train two small networks, audit and harden them, say where the reports lie"
	@echo "make quick      the inner loop: linters, types, import rules, fast tests (under 3 minutes)"
	@echo "make test       everything that CI runs"
	@echo "make benchmark  our attacks beside those of other libraries"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "audit needs Python 3.11 or newer, got " + sys.version'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[art,explain,sign,dev]"
	touch $@

demo: $(READY)
	$(BIN)/audit demo --out audit-demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

quick: lint
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not slow"

test: lint
	$(BIN)/pytest -n $(WORKERS)

docs: $(READY)
	$(BIN)/audit list metrics --markdown > docs/metrics.md
	$(BIN)/audit list attacks --markdown > docs/art.md

benchmark: $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[benchmark]"
	$(BIN)/pip install --quiet --no-deps torchattacks==3.5.1
	$(BIN)/python benchmarks/pgd.py
	$(BIN)/python benchmarks/anomaly.py

clean:
	rm -rf $(VENV) build dist audit-demo audit-out
