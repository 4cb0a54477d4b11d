# Two commands on a fresh machine with Python 3.11 or later: `make demo` and `make test`.
PYTHON ?= python3
CONFIG ?= deploy.toml
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: install demo test check format bench-demo clean

.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv; the first time takes minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[compress,edge,dev]'
	touch $@

install: .venv/installed

# From the shipped model to a served, validated endpoint.
demo: .venv/installed
	$(BIN)/slimdeploy run $(CONFIG)

test: .venv/installed
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

# mypy reads the installed package: it cannot follow the mapping of exporters/ and serve/ under one name.
check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf build/installed
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/installed .
	MYPYPATH=build/installed $(BIN)/mypy --package slimdeploy

bench-demo: .venv/installed
	$(BIN)/python benchmarks/demo.py

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv dist build *.egg-info
