# `make demo` and `make test` each set up everything they need; `make help` lists the rest.

PYTHON ?= python3
DEMO_ARGS ?=
TABLE ?= all
TABLES_ARGS ?=
BENCH_ARGS ?=
FUZZ_ARGS ?=
SOAK_ARGS ?=
TEST_ARGS ?=

# With TORCH=2.9.1 every target has an environment of its own, beside that of the checkout.
ifdef TORCH
OTHER := $(CURDIR)/target/torch-$(TORCH)-$(notdir $(PYTHON))
VENV := $(OTHER)/venv
PACKAGE := $(OTHER)/package
TARGET := $(OTHER)/cargo
else
VENV := $(CURDIR)/.venv
PACKAGE := $(CURDIR)/python
TARGET := $(CURDIR)/target
endif
UV_VERSION := $(shell sed -n 's/^uv==\([^ ;]*\).*/\1/p' requirements.lock)
SOURCES := $(shell find src -type f) Cargo.toml Cargo.lock build_backend.py compat/torch_compat.h
ifdef TORCH
SOURCES += $(shell find python -name '*.py*') # copied into $(PACKAGE)
endif
CARGO = python build_backend.py cargo
# Debug assertions and overflow checks in this package alone, so that torch-sys is not compiled a second time.
CHECKED := $(addprefix --config profile.release.package.batchformer.,debug-assertions=true overflow-checks=true)
# What takes the kernels through every shape, path and number of threads; the large inputs add time, no branch.
CHECKED_TESTS := tests/test_encoder_layer.py tests/test_dropout.py tests/test_fused_path.py
CHECKED_PICK := not half_precision and not large and not ten_thousand
# The path of CUDA; not for the sanitizer, which knows nothing of the stacks that the emulator switches.
CHECKED_ON_CUDA := tests/cuda/test_path.py
CORE_TESTS := $(addprefix tests/test_,encoder_layer.py fused_path.py registration.py direct.py batchformer.py \
	needs.py dropout.py declined.py memory.py training_tools.py import.py build_backend.py \
	keys_values.py ranks.py memory_bank_recomputed.py remembering_modules.py larger_batches.py) \
	$(addprefix tests/cuda/test_,compile.py driver.py path.py on_cuda.py)
# The sanitizer is unstable, so a wrapper gives its flag to this package and leaves all that it depends on as it is.
# A pool that keeps nothing shows what is used after it was given back; torch and Python never free all they have.
SANITIZED = RUSTC_WORKSPACE_WRAPPER=$(TARGET)/sanitize/rustc
SANITIZER = ASAN_OPTIONS=detect_leaks=0 BATCHFORMER_POOL_MB=0
# Behind a wrapper cargo takes the plain extension for the sanitized one and back, as both are called lib_core.so.
FORGET = cargo clean --quiet --release --package batchformer
# A wheel that any Linux with glibc 2.28 can load, and that brings nothing of torch.
FOR_MANYLINUX = CARGO_TARGET_$(shell uname -m | tr a-z A-Z)_UNKNOWN_LINUX_GNU_LINKER=$(CURDIR)/compat/link_for_glibc_2_28.sh \
	CXXFLAGS=-D_GLIBCXX_EXTERN_TEMPLATE=0 CXXSTDLIB= CARGO_TARGET_DIR=$(TARGET)/manylinux
LIBRARIES_OF_TORCH := libtorch.so libtorch_cpu.so libtorch_python.so libc10.so
# A copy of the package in $(TARGET)/$(1) with the extension that was built last.
beside = rm -rf $(TARGET)/$(1)/batchformer && mkdir -p $(TARGET)/$(1) \
	&& cp -r $(PACKAGE)/batchformer $(TARGET)/$(1)/ \
	&& install $(TARGET)/release/lib_core.so $(TARGET)/$(1)/batchformer/_core.abi3.so
TORCH_LIB = $(shell $(VENV)/bin/python -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0] + "/lib")')

# Every recipe sees this environment and no other, whatever the caller has activated.
export VIRTUAL_ENV := $(VENV)
export PATH := $(VENV)/bin:$(PATH)
export PYO3_PYTHON := $(VENV)/bin/python
export PYO3_BUILD_EXTENSION_MODULE := 1
export CARGO_TARGET_DIR := $(TARGET)
unexport CONDA_PREFIX PYTHONHOME PYTHONPATH

.PHONY: help demo tables tables-short test test-torch test-trainers test-cuda-compile core checked sanitize bench fuzz soak build docs docs-links figures lint format wheel wheels sdist licences lock clean
.DEFAULT_GOAL := help

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-17s %s\n", $$1, $$2 }'

demo: $(VENV)/.built ## Train on long-tailed letters with and without BatchFormer; prints the table, draws the figures
	python -m examples.demo $(DEMO_ARGS)

tables: $(VENV)/.built ## Train every table of the papers in miniature (hours; TABLE=few_shot for one); goes on where it was left
	python -m examples.tables $(TABLE) $(TABLES_ARGS)

tables-short: $(VENV)/.built ## A fixed part of them (under 90 minutes on two cores)
	python -m examples.tables $(TABLE) --short $(TABLES_ARGS)

test: checked ## Run every test, Rust and Python
	python -m pytest $(TEST_ARGS)

test-torch: test ## The same beside another torch: TORCH=2.9.1, and PYTHON=python3.13 if you like

test-trainers: $(VENV)/.built $(VENV)/.trainers ## Train in the trainers that people use, beside the same loops by hand (4 minutes)
	python -m pytest tests/trainers $(TEST_ARGS)

test-cuda-compile: $(VENV)/.built ## Compile every CUDA kernel for every architecture, beside the table of its registers
	BATCHFORMER_COMPILE_ALL=1 python -m pytest tests/cuda/test_compile.py $(TEST_ARGS)

core: $(VENV)/.built ## Run the tests of the layer, the ops and the modules alone
	python -m pytest $(CORE_TESTS)

checked: $(VENV)/.built ## Run the Rust tests and those of the kernels with debug assertions and overflow checks
	LD_LIBRARY_PATH="$(TORCH_LIB)" $(CARGO) test --release --quiet $(CHECKED)
	$(CARGO) build --release --locked --quiet $(CHECKED)
	$(call beside,checked)
	PYTHONPATH=$(TARGET)/checked python -m pytest $(CHECKED_TESTS) $(CHECKED_ON_CUDA) -k "$(CHECKED_PICK)"

sanitize: $(VENV)/.built ## Run the Rust tests and those of the kernels under the address sanitizer (10 minutes; needs gcc)
	mkdir -p $(TARGET)/sanitize
	printf '#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec "$$@" -Zsanitizer=address -Cdebuginfo=1 -Cstrip=none\n' > $(TARGET)/sanitize/rustc
	chmod +x $(TARGET)/sanitize/rustc
	$(FORGET)
	$(SANITIZER) $(SANITIZED) LD_LIBRARY_PATH="$(TORCH_LIB)" $(CARGO) test --release --quiet
	$(SANITIZED) $(CARGO) build --release --locked --quiet
	$(call beside,sanitize)
	$(FORGET)
	$(SANITIZER) PYTHONPATH=$(TARGET)/sanitize LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" \
		python -m pytest $(CHECKED_TESTS) -k "$(CHECKED_PICK)"

bench: $(VENV)/.built ## Time the layer beside torch's and beside its bare matrix products (10 minutes)
	python -m batchformer.benchmark $(BENCH_ARGS)

fuzz: $(VENV)/.built ## Random calls beside torch's layer in float64: FUZZ_ARGS="--calls 1000 --seed 3 --minutes 5"
	cd tests && python -m fuzz $(FUZZ_ARGS)

soak: $(VENV)/.built ## A million small steps and 10,000 varied ones, and the memory they take (SOAK_ARGS)
	cd tests && python -m fuzz.soak $(SOAK_ARGS)

build: $(VENV)/.built ## Make .venv and build the extension into python/batchformer

# Every page is read anew, as one that has not changed keeps its warnings to itself.
docs: $(VENV)/.built $(VENV)/.docs ## Build the documentation into target/docs, offline; a warning is an error
	sphinx-build -E -W --keep-going -n -q -b html docs $(TARGET)/docs

docs-links: $(VENV)/.built $(VENV)/.docs ## Ask the network whether the links of the documentation are alive
	sphinx-build -E -q -b linkcheck docs $(TARGET)/docs-links

figures: $(VENV)/.built ## Draw the figures of the documentation anew, from the numbers that its pages have
	python -m docs.figures
	python -m examples.glyphs.sheet
	python -m examples.tables.page

lint: $(VENV)/.built ## rustfmt, clippy, ruff, mypy, stubtest
	cargo fmt --check
	$(CARGO) clippy --release --all-targets --quiet -- -D warnings
	ruff format --check
	ruff check
	mypy
	stubtest batchformer._core

format: $(VENV)/.installed ## Rewrite the sources as rustfmt and ruff want them
	cargo fmt
	ruff format
	ruff check --fix

wheel: $(VENV)/.installed ## Build the wheel for the environment's torch into dist/torch-2.15 (TORCH=2.11 for another)
	uv pip install --quiet --group release
	rm -rf $(TARGET)/wheel
	$(FOR_MANYLINUX) uv build --quiet --wheel --no-build-isolation \
		--config-setting torch-in-version=yes --out-dir $(TARGET)/wheel
	auditwheel repair --plat manylinux_2_28_$(shell uname -m) $(addprefix --exclude ,$(LIBRARIES_OF_TORCH)) \
		--wheel-dir dist/torch-$$(python build_backend.py --release) $(TARGET)/wheel/*.whl
	twine check --strict dist/torch-$$(python build_backend.py --release)/*

wheels: $(VENV)/.installed ## The same for every release of torch (20 minutes)
	for torch in $$(python build_backend.py --releases); do $(MAKE) --no-print-directory wheel TORCH=$$torch || exit; done

sdist: $(VENV)/.installed ## Pack the sources into dist/
	uv pip install --quiet --group release
	uv build --quiet --sdist --no-build-isolation --out-dir dist
	twine check --strict dist/*.tar.gz

licences: ## Collect those of the linked crates in licences/THIRD_PARTY (cargo install cargo-about --features cli)
	cargo about generate --config licences/about.toml licences/about.hbs --output-file licences/THIRD_PARTY

lock: $(VENV)/.installed ## Resolve the groups of pyproject.toml anew into requirements.lock
	uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --group dev -o requirements.lock

clean: ## Remove everything that was built, .venv included, but not the results of trainings
	rm -rf $(VENV) target dist python/batchformer/*.so
	find python tests examples docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "batchformer needs Python 3.10 or newer; name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import pathlib, sys, sysconfig; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' || { echo "batchformer needs the headers of Python to build (Debian: apt install python3-dev)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(if $(TORCH),python tests/requirements_for.py $(TORCH) $(VENV) && uv pip install --quiet --group dev \
		--constraint $(VENV)/constraints.txt --override $(VENV)/overrides.txt,\
		uv pip install --quiet --require-hashes -r requirements.lock)
	touch $@

$(VENV)/.docs: $(VENV)/.installed pyproject.toml
	uv pip install --quiet --group docs
	touch $@

$(VENV)/.trainers: $(VENV)/.installed pyproject.toml
	uv pip install --quiet --group trainers
	touch $@

# The package is used from python/, where the extension is put; `make wheel` and `pip install .` go by maturin.
$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	$(CARGO) build --release --locked
	$(if $(TORCH),rm -rf $(PACKAGE) && mkdir -p $(PACKAGE) && cp -r python/batchformer $(PACKAGE)/)
	install $(TARGET)/release/lib_core.so $(PACKAGE)/batchformer/_core.abi3.so
	python build_backend.py --release > $(PACKAGE)/batchformer/built_for.txt
	python -c 'import site; open(site.getsitepackages()[0] + "/batchformer.pth", "w").write("$(PACKAGE)\n")'
	touch $@
