# Two commands on a fresh machine with Python 3.11 or later: `make demo` and `make test`.
PYTHON ?= python3
CONFIG ?= deploy.toml
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: install demo test soak check format bench-demo bench-kernels bench-onnx bench-onnx-scale bench-quality bench-scale bench-serve bench-serve-batching bench-serve-memory bench-serve-overhead wheels clean

KERNELS := slimdeploy/kernels

.venv/installed: pyproject.toml constraints.txt setup.py $(wildcard $(KERNELS)/csrc/*)
	@echo "installing into .venv; the first time takes minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[compress,edge,dev]'
	@! test -e $(KERNELS)/not_built.txt || { echo "warning: no compiled kernels, so packed models will be slow:"; cat $(KERNELS)/not_built.txt; }
	touch $@

install: .venv/installed

# From the shipped model to a served, validated endpoint.
demo: .venv/installed
	$(BIN)/slimdeploy run $(CONFIG)

# A worker for each core; worksteal keeps tests that share a fixture together until a worker has nothing left to do.
test: .venv/installed
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=8 --dist=worksteal \
	    --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

# Ten minutes of more load than the server can bear, then a table; `make test` has 30 seconds of it.
soak: export SOAK_SECONDS ?= 600
soak: .venv/installed
	$(BIN)/python -m pytest --capture=no --quiet tests/serve/test_soak.py

# mypy reads the installed package: it cannot follow the mapping of exporters/ and serve/ under one name.
check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf build/installed
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/installed .
	MYPYPATH=build/installed $(BIN)/mypy --package slimdeploy

bench-demo: .venv/installed
	$(BIN)/python benchmarks/demo.py

# SLIMDEPLOY_BENCH_GGML=FOLDER adds llama.cpp; benchmarks/README.md tells how.
bench-kernels: .venv/installed
	$(BIN)/python benchmarks/kernel_speed.py

# Exports the 1B shape with random weights, and the demo, in every form; about 20 minutes.
bench-onnx: .venv/installed
	$(BIN)/python benchmarks/onnx_speed.py

# Exports and verifies the 7B shape from disk, about 20 minutes; BENCH_ARGS="--folder DIR" says where 20 GB are.
bench-onnx-scale: .venv/installed
	$(BIN)/python benchmarks/onnx_scale.py $(BENCH_ARGS)

# Ours beside those peers that SLIMDEPLOY_BENCH_LLAMACPP, _OPENVINO and _VLLM name; benchmarks/README.md tells how.
# BENCH_ARGS="--folder DIR" keeps the models for the next time.
bench-serve: .venv/installed
	$(BIN)/python benchmarks/serve_peers.py $(BENCH_ARGS)

# What answers gain from each other, and lose while a prompt is read; three minutes, once the model is made.
bench-serve-batching: .venv/installed
	$(BIN)/python benchmarks/serve_batching.py $(BENCH_ARGS)

# What a server adds to its engine's tokens, and what connections that idle cost it; a few minutes.
bench-serve-overhead: .venv/installed
	$(BIN)/python benchmarks/serve_overhead.py $(BENCH_ARGS)

# Exports a smaller model in five forms and lets a server answer as long prompts as it takes; about 10 minutes.
bench-serve-memory: .venv/installed
	$(BIN)/python benchmarks/serve_memory.py $(BENCH_ARGS)

# Finished cells are kept in benchmarks/results/quality_cells.json; BENCH_ARGS=--fresh measures them again, for hours.
bench-quality: .venv/installed
	$(BIN)/python benchmarks/quality.py $(BENCH_ARGS)

# SLIMDEPLOY_BENCH_LLMCOMPRESSOR=PATH/bin/python adds llm-compressor; BENCH_ARGS=--full prunes all of the 7B shape.
bench-scale: .venv/installed
	$(BIN)/python benchmarks/prune_scale.py $(BENCH_ARGS)

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What devices install: wheels for x86-64 and 64-bit Arm with every instruction set, built from the source distribution
# with g++, cmake and g++-aarch64-linux-gnu. auditwheel finds the oldest systems that they run on and names them so.
wheels: export SLIMDEPLOY_REQUIRE_KERNELS = 1
wheels: .venv/installed
	rm -rf build/wheels dist/wheels
	$(BIN)/python -m build --outdir build/wheels
	CMAKE_TOOLCHAIN_FILE=$(CURDIR)/$(KERNELS)/csrc/aarch64.cmake $(BIN)/python -m build --outdir build/wheels \
	    --config-setting=--build-option=--plat-name=linux_aarch64
	$(BIN)/auditwheel repair --patcher none --wheel-dir dist/wheels build/wheels/*.whl
	mv build/wheels/*.tar.gz dist/wheels

clean:
	rm -rf .venv dist build *.egg-info $(KERNELS)/*.so $(KERNELS)/not_built.txt
