# `make` alone prints what can be done. All that is needed beforehand is Python, git and make.

PYTHON ?= python3
ARGS ?=

NEWEST := .venv
OLDEST := .venv-4.53

# pip compiles nothing: most modules are never imported, and those that are keep what Python makes of them.
export PYTHONDONTWRITEBYTECODE :=

# One thread per test process, and no test may reach the network.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
PYTEST := -m pytest -n 3

# What does not depend on transformers is tried with the newest one alone: how processes start and end, what
# steps cost, how checkpoints change their form, how commands print and run, programs made from a plan, guides.
TRIED_ONCE := $(addprefix --ignore=tests/,benchmarks clusters checkpoint/convert checkpoint/test_full_disk.py checkpoint/test_killed.py \
	cli/test_completion.py cli/test_env.py cli/test_explain.py cli/test_named.py cli/test_run.py cli/test_verify.py verification engine/test_signals.py test_guides.py trainer/components/test_shutdown.py \
	translate/test_source.py upstream/test_process.py upstream/test_started.py \
	$(addprefix distributed/test_,deaths.py forms.py hosts.py launch.py policies.py preemption.py references.py) \
	conformance/test_trl.py test_examples.py trl/detect trl/test_root.py)

# The wheel is tried in an environment of its own that borrows the dependencies of $(NEWEST): what it
# must not borrow is the checkout.
TRIAL := build/trial
PACKAGES := 'import sysconfig; print(sysconfig.get_path("purelib"))'
TRY_OUT := 'import compat, sys; from compat import Trainer, TrainingArguments; \
	assert compat.__file__.startswith(sys.prefix), compat.__file__; print(compat.__file__, Trainer)'

# What a user installs is tried in environments that have nothing else, with each Python that is there.
PYTHONS := 3.10 3.11 3.12 3.13 3.14
TORCH := torch==2.13.0

# DeepSpeed is tried where it is installed, in environments that borrow the rest likewise. It runs on a CPU.
LEGS := $(NEWEST)
WITH_ZERO := $(addprefix tests/distributed/test_,deepspeed.py sequence_parallel.py \
	preferences.py::test_equal_under_zero policies.py::test_policies_under_zero \
	references.py::test_references_under_zero)
WITH_DEEPSPEED := $(addsuffix -deepspeed,$(LEGS))

# Releases between the two ends: the last of every minor one. Each is tried where all but transformers, and what
# comes with it, is borrowed from the environment of its own line.
RELEASES := 4.53.3 4.54.1 4.55.4 4.56.2 4.57.6 5.0.0 5.1.0 5.2.0 5.3.0 5.4.0 5.5.4 5.6.2 5.7.0 5.8.1 5.9.0 5.10.4 \
	5.11.0 5.12.1 5.13.1 5.14.1 5.15.1 5.16.1 5.17.0 5.18.0 5.19.0 5.20.2 5.21.1 5.22.2 5.23.0 5.24.0
BORROWERS = $(addprefix build/releases/,$(RELEASES))
LENDER = $(if $(filter 4.%,$(1)),$(OLDEST),$(NEWEST))
SETUPS := tests/parity/test_parity.py $(addprefix tests/upstream/test_,features.py seams.py)

# The oldest releases that pyproject.toml declares, all at once, the newest torch, and torch_xla with the torch that
# it needs: each downloads a torch of several GB. What only the tests need is not declared, and is as pip finds it.
LOWEST := build/lowest
NEWEST_TORCH := build/newest-torch
XLA := build/xla
# Ray, Dask, and Spark, which needs Java.
CLUSTERS := build/clusters
FOR_TESTS := pytest pytest-timeout pytest-xdist tensorboard
FACES := tests/test_root.py tests/upstream/test_required.py tests/callbacks/test_loggers.py tests/cli

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help environments train test test-newest test-oldest test-deepspeed test-releases test-lowest \
	test-newest-torch test-xla test-clusters test-pythons zoo lint format types docs site screenshots serve \
	bench bench-ratios bench-saving wheel clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

environments: $(NEWEST)/ready $(OLDEST)/ready ## Make the environments; -j2 makes both at once

train: $(NEWEST)/ready ## Train examples/digits.py on Lightning; ARGS="--num_train_epochs 5" passes arguments on
	$(NEWEST)/bin/compat run examples/digits.py $(ARGS)

test: test-newest test-oldest ## Run all tests, with the newest and with the oldest transformers; ARGS="-k name" selects

test-newest: $(NEWEST)/ready ## Run all tests with the newest transformers
	$(TEST_ENV) $(NEWEST)/bin/python $(PYTEST) $(ARGS)

test-oldest: $(OLDEST)/ready ## Run all tests with the oldest transformers (4.53)
	$(TEST_ENV) $(OLDEST)/bin/python $(PYTEST) $(TRIED_ONCE) $(ARGS)

test-deepspeed: $(addsuffix /ready,$(WITH_DEEPSPEED)) ## Run the tests that need DeepSpeed; LEGS=.venv-4.53 with the oldest transformers
	for environment in $(WITH_DEEPSPEED); do \
		DS_ACCELERATOR=cpu $$environment/bin/python -c 'import deepspeed' && \
		$(TEST_ENV) $$environment/bin/python -m pytest -n 2 --dist loadfile $(WITH_ZERO) $(ARGS) || exit 1; \
	done

test-releases: $(addsuffix /ready,$(BORROWERS)) ## Run the parity set-ups between the two ends; RELEASES="5.0.0 5.1.0" selects
	for environment in $(BORROWERS); do \
		printf '\n=== %s\n' "$$environment" && \
		$(TEST_ENV) $$environment/bin/python $(PYTEST) $(SETUPS) $(ARGS) || failed="$$failed $$environment"; \
	done; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

test-lowest: $(LOWEST)/ready ## Run the parity set-ups with the oldest releases that pyproject.toml declares
	$(TEST_ENV) $(LOWEST)/bin/python $(PYTEST) $(SETUPS) $(FACES) $(ARGS)

test-newest-torch: $(NEWEST_TORCH)/ready ## Run the parity set-ups with the newest torch
	$(TEST_ENV) $(NEWEST_TORCH)/bin/python $(PYTEST) $(SETUPS) $(ARGS)

test-xla: $(XLA)/ready ## Run the tests of XLA devices on a CPU
	$(TEST_ENV) PJRT_DEVICE=CPU $(XLA)/bin/python -m pytest -n 1 tests/xla $(ARGS)

test-clusters: $(CLUSTERS)/ready ## Train in the workers of Ray, Spark and Dask, and as Kubeflow and SageMaker start processes
	$(TEST_ENV) $(CLUSTERS)/bin/python -m pytest -n 0 tests/clusters $(ARGS)

zoo: environments ## Train with libraries from PyPI on both Trainers, compare all to the bit; ARGS="trl peft", GROUPS="newest" select
	$(TEST_ENV) $(NEWEST)/bin/python -m tests.zoo.zoo $(ARGS) $(if $(GROUPS),--groups $(GROUPS))

lint: $(NEWEST)/ready ## Check style, format and the direction of imports
	$(NEWEST)/bin/ruff check .
	$(NEWEST)/bin/ruff format --check .
	$(NEWEST)/bin/python tests/layers.py

format: $(NEWEST)/ready ## Repair what `make lint` can repair by itself
	$(NEWEST)/bin/ruff check --fix .
	$(NEWEST)/bin/ruff format .

types: $(NEWEST)/ready ## Check types
	$(NEWEST)/bin/mypy

docs: $(NEWEST)/ready ## Write docs/arguments.md from the tables that the code reads
	$(NEWEST)/bin/python docs/arguments.py

site: $(NEWEST)/ready ## Build the site into build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(NEWEST)/bin/mkdocs build --quiet --strict

screenshots: site ## Look at each page of the site in Debian's Chromium, at two widths; ARGS=--pictures keeps pictures
	$(NEWEST)/bin/python tests/screenshots.py $(ARGS)

serve: $(NEWEST)/ready ## Show the site while its pages are written
	NO_MKDOCS_2_WARNING=1 $(NEWEST)/bin/mkdocs serve

bench-ratios: $(NEWEST)/ready ## Compare evaluation, start, memory and more with HF; ARGS="--against REV" with a commit
	$(NEWEST)/bin/python tests/benchmarks/ratios.py $(ARGS)

bench-saving: $(NEWEST)/ready ## Measure how long saving blocks training and write docs/saving.md
	$(NEWEST)/bin/python tests/benchmarks/saving.py $(ARGS)

bench: $(NEWEST)/ready ## Measure the cost per step and write docs/benchmarks.md
	$(NEWEST)/bin/python tests/benchmarks/bench.py $(ARGS)

wheel: $(NEWEST)/ready ## Build the wheel and try it outside the checkout
	rm -rf dist
	$(NEWEST)/bin/python -m build --wheel
	$(NEWEST)/bin/python -m venv --clear $(TRIAL)
	$(TRIAL)/bin/python -m pip install --quiet --no-deps dist/*.whl
	$(NEWEST)/bin/python -c $(PACKAGES) > "$$($(TRIAL)/bin/python -c $(PACKAGES))/borrowed.pth"
	cd / && $(CURDIR)/$(TRIAL)/bin/python -I -c $(TRY_OUT)
	cd / && $(CURDIR)/$(TRIAL)/bin/compat --help

test-pythons: $(NEWEST)/ready ## Install wheel and source archive in empty environments and train; PYTHONS="3.10 3.13" selects
	rm -rf dist && $(NEWEST)/bin/python -m build
	for version in $(PYTHONS); do \
		python=$$(ls -d ~/.pyenv/versions/$$version.*/bin/python 2>/dev/null | tail -1); \
		python=$${python:-$$(command -v python$$version)}; \
		test -n "$$python" || { echo "Python $$version: not on this machine, not tried"; continue; }; \
		for archive in dist/*.whl dist/*.tar.gz; do \
			$$python -m venv --clear build/pythons/$$version && \
			build/pythons/$$version/bin/python -m pip install -qq --no-compile $(TORCH) $$archive && \
			$(TEST_ENV) build/pythons/$$version/bin/python -I tests/smoke.py && \
			build/pythons/$$version/bin/compat --version || exit 1; \
		done; \
	done

clean: ## Remove environments, caches, builds and runs
	rm -rf .venv* build dist runs .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is made again from nothing when what it is made from changes: what is left of an
# older set of packages would make it another one than a fresh machine gets.
$(NEWEST)/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --no-compile -c $< -e '.[dev,docs]'
	@touch $@

$(OLDEST)/ready: constraints-4.53.txt pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --no-compile -c $< -e '.[dev]'
	@touch $@

$(NEWEST)-deepspeed/ready: constraints.txt $(NEWEST)/ready
$(OLDEST)-deepspeed/ready: constraints-4.53.txt $(OLDEST)/ready
$(addsuffix /ready,$(WITH_DEEPSPEED)): %-deepspeed/ready:
	$*/bin/python -m venv --clear $(@D)
	$*/bin/python -c $(PACKAGES) > "$$($(@D)/bin/python -c $(PACKAGES))/borrowed.pth"
	$(@D)/bin/python -m pip install --quiet --no-compile -c $< -e '.[deepspeed]'
	@touch $@

build/releases/%/ready: $(NEWEST)/ready $(OLDEST)/ready
	$(NEWEST)/bin/python -m venv --clear $(@D)
	$(call LENDER,$*)/bin/python -c $(PACKAGES) > "$$($(@D)/bin/python -c $(PACKAGES))/borrowed.pth"
	$(@D)/bin/python -m pip install --quiet --no-compile transformers==$*
	@touch $@

$(LOWEST)/ready: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --no-compile uv
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python --resolution lowest-direct -e '.[peft]'
	$(@D)/bin/python -m pip install --quiet --no-compile $(FOR_TESTS)
	@touch $@

$(NEWEST_TORCH)/ready: pyproject.toml $(NEWEST)/ready
	$(NEWEST)/bin/python -m venv --clear $(@D)
	$(NEWEST)/bin/python -c $(PACKAGES) > "$$($(@D)/bin/python -c $(PACKAGES))/borrowed.pth"
	$(@D)/bin/python -m pip install --quiet --no-compile --upgrade --ignore-installed torch
	@touch $@

$(XLA)/ready: $(NEWEST)/ready
	$(NEWEST)/bin/python -m venv --clear $(@D)
	$(NEWEST)/bin/python -c $(PACKAGES) > "$$($(@D)/bin/python -c $(PACKAGES))/borrowed.pth"
	$(@D)/bin/python -m pip install --quiet --no-compile torch==2.9.1 torch_xla==2.9.0
	@touch $@

$(CLUSTERS)/ready: $(NEWEST)/ready
	$(NEWEST)/bin/python -m venv --clear $(@D)
	$(NEWEST)/bin/python -c $(PACKAGES) > "$$($(@D)/bin/python -c $(PACKAGES))/borrowed.pth"
	$(@D)/bin/python -m pip install --quiet --no-compile 'ray[train,data]' pyspark distributed
	@touch $@
