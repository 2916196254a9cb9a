# `make demo` and `make test` each set up everything they need; `make help` lists the rest.

PYTHON ?= python3
DEMO_ARGS ?=
BENCH_ARGS ?=
FUZZ_ARGS ?=
SOAK_ARGS ?=

VENV := $(CURDIR)/.venv
UV_VERSION := $(shell sed -n 's/^uv==\([^ ;]*\).*/\1/p' requirements.lock)
RUST_SOURCES := $(shell find src -name '*.rs') Cargo.toml Cargo.lock .cargo/config.toml
# Debug assertions and overflow checks in this package alone, so that torch-sys is not compiled a second time.
CHECKED := $(addprefix --config profile.release.package.batchformer.,debug-assertions=true overflow-checks=true)
# What takes the kernels through every shape, path and number of threads; the large inputs add time, no branch.
CHECKED_TESTS := tests/test_encoder_layer.py tests/test_dropout.py tests/test_fused_path.py
CHECKED_PICK := not half_precision and not large and not ten_thousand
# The sanitizer is unstable, so a wrapper gives its flag to this package and leaves all that it depends on as it is.
# A pool that keeps nothing shows what is used after it was given back; torch and Python never free all they have.
SANITIZED = RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/target/sanitize/rustc LIBRARY_PATH="$(TORCH_LIB)"
SANITIZER = ASAN_OPTIONS=detect_leaks=0 BATCHFORMER_POOL_MB=0
# Behind a wrapper cargo takes the plain extension for the sanitized one and back, as both are called lib_core.so.
FORGET = cargo clean --quiet --release --package batchformer
# A copy of the package in target/$(1) with the extension that was built last.
beside = rm -rf target/$(1)/batchformer && mkdir -p target/$(1) && cp -r python/batchformer target/$(1)/ \
	&& install target/release/lib_core.so target/$(1)/batchformer/_core.abi3.so
TORCH_LIB = $(shell $(VENV)/bin/python -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0] + "/lib")')

# Every recipe sees this environment and no other, whatever the caller has activated.
export VIRTUAL_ENV := $(VENV)
export PATH := $(VENV)/bin:$(PATH)
export PYO3_PYTHON := $(VENV)/bin/python
export PYO3_BUILD_EXTENSION_MODULE := 1
unexport CONDA_PREFIX PYTHONHOME PYTHONPATH

.PHONY: help demo test checked sanitize bench fuzz soak build lint format wheel lock clean
.DEFAULT_GOAL := help

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-8s %s\n", $$1, $$2 }'

demo: $(VENV)/.built ## Train long-tailed digits with and without BatchFormer; prints the table, draws the figures
	python examples/long_tailed.py $(DEMO_ARGS)

test: checked ## Run every test, Rust and Python
	python -m pytest

checked: $(VENV)/.built ## Run the Rust tests and those of the kernels with debug assertions and overflow checks
	LIBRARY_PATH="$(TORCH_LIB)" LD_LIBRARY_PATH="$(TORCH_LIB)" cargo test --release --quiet $(CHECKED)
	LIBRARY_PATH="$(TORCH_LIB)" cargo build --release --locked --quiet $(CHECKED)
	$(call beside,checked)
	PYTHONPATH=$(CURDIR)/target/checked python -m pytest $(CHECKED_TESTS) -k "$(CHECKED_PICK)"

sanitize: $(VENV)/.built ## Run the Rust tests and those of the kernels under the address sanitizer (10 minutes; needs gcc)
	mkdir -p target/sanitize
	printf '#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec "$$@" -Zsanitizer=address -Cdebuginfo=1 -Cstrip=none\n' > target/sanitize/rustc
	chmod +x target/sanitize/rustc
	$(FORGET)
	$(SANITIZER) $(SANITIZED) LD_LIBRARY_PATH="$(TORCH_LIB)" cargo test --release --quiet
	$(SANITIZED) cargo build --release --locked --quiet
	$(call beside,sanitize)
	$(FORGET)
	$(SANITIZER) PYTHONPATH=$(CURDIR)/target/sanitize LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" \
		python -m pytest $(CHECKED_TESTS) -k "$(CHECKED_PICK)"

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
