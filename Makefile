# Two commands on a fresh machine with Python 3.11 or later: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test check format clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[compress,edge,dev]'
	touch $@

install: $(VENV)/installed

demo: $(VENV)/installed  ## from the shipped model to a served, validated endpoint; DEMO_ARGS="--smallest" for a quick look
	$(BIN)/slimdeploy run deploy.toml $(DEMO_ARGS)

test: $(VENV)/installed
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

check: $(VENV)/installed  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) dist build *.egg-info
