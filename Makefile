# `make demo` and `make test` each set up everything they need; `make help` lists the rest.

PYTHON ?= python3
DEMO_ARGS ?=
BENCH_ARGS ?=
FUZZ_ARGS ?=
SOAK_ARGS ?=

VENV := $(CURDIR)/.venv
UV_VERSION := $(shell sed -n 's/^uv==\([^ ;]*\).*/\1/p' requirements.lock)
RUST_SOURCES := $(shell find src -name '*.rs') Cargo.toml Cargo.lock .cargo/config.toml
TORCH_LIB = $(shell $(VENV)/bin/python -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0] + "/lib")')

# Every recipe sees this environment and no other, whatever the caller has activated.
export VIRTUAL_ENV := $(VENV)
export PATH := $(VENV)/bin:$(PATH)
export PYO3_PYTHON := $(VENV)/bin/python
export PYO3_BUILD_EXTENSION_MODULE := 1
unexport CONDA_PREFIX PYTHONHOME PYTHONPATH

.PHONY: help demo test bench fuzz soak build lint format wheel lock clean
.DEFAULT_GOAL := help

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-8s %s\n", $$1, $$2 }'

demo: $(VENV)/.built ## Train long-tailed digits with and without BatchFormer; prints the table, draws the figures
	python examples/long_tailed.py $(DEMO_ARGS)

test: $(VENV)/.built ## Run every test, Rust and Python
	LD_LIBRARY_PATH="$(TORCH_LIB)" cargo test --release --quiet
	python -m pytest

bench: $(VENV)/.built ## Time the layer beside torch's and beside its bare matrix products (10 minutes)
	python -m batchformer.benchmark $(BENCH_ARGS)

fuzz: $(VENV)/.built ## Random calls beside torch's layer in float64: FUZZ_ARGS="--calls 1000 --seed 3 --minutes 5"
	cd tests && python -m fuzz $(FUZZ_ARGS)

soak: $(VENV)/.built ## A million small steps and 10,000 varied ones, and the memory they take (SOAK_ARGS)
	cd tests && python -m fuzz.soak $(SOAK_ARGS)

build: $(VENV)/.built ## Make .venv and build the extension into python/batchformer

lint: $(VENV)/.built ## rustfmt, clippy, ruff, mypy, stubtest
	cargo fmt --check
	LIBRARY_PATH="$(TORCH_LIB)" cargo clippy --release --all-targets --quiet -- -D warnings
	ruff format --check
	ruff check
	mypy
	stubtest batchformer._core

format: $(VENV)/.installed ## Rewrite the sources as rustfmt and ruff want them
	cargo fmt
	ruff format
	ruff check --fix

wheel: $(VENV)/.built ## Build one abi3 wheel into dist/
	uv build --quiet --wheel --no-build-isolation --out-dir dist
	@ls -l dist/*.whl

lock: $(VENV)/.installed ## Resolve pyproject.toml anew into requirements.lock
	uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --group dev pyproject.toml -o requirements.lock

clean: ## Remove everything that was built, .venv included
	rm -rf $(VENV) target dist results python/batchformer/*.so
	find python tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "batchformer needs Python 3.10 or newer; name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import pathlib, sys, sysconfig; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' || { echo "batchformer needs the headers of Python to build (Debian: apt install python3-dev)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	uv pip install --quiet --require-hashes -r requirements.lock
	touch $@

# The package is used from python/, where the extension is put; `make wheel` and `pip install .` go by maturin.
$(VENV)/.built: $(VENV)/.installed $(RUST_SOURCES)
	LIBRARY_PATH="$(TORCH_LIB)" cargo build --release --locked
	install target/release/lib_core.so python/batchformer/_core.abi3.so
	python -c 'import site; open(site.getsitepackages()[0] + "/batchformer.pth", "w").write("$(CURDIR)/python\n")'
	touch $@
