# Everything a person types. Two commands set a fresh machine up by themselves: make demo, make test.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ENGINES := train sharded transformers gptq compressor vllm
MODEL := smollm2-135m-instruct
PYTEST := $(BIN)/python -m pytest
TRL := $(HOME)/.cache/swiftlaunch/tests/trl-$(shell sha256sum tests/train/trl.txt | cut -c1-12)
FAULTS ?= 30
CLUSTER ?= /tmp/swiftlaunch-cluster-$(shell id -un)

.PHONY: check lint types fast demo test chaos equivalence bench engines cluster docs golden wheel clean
check: lint types fast  ## lint, types and the fast tests, under a minute

$(STAMP): pyproject.toml tests/requirements.txt
	@tests/system-packages.sh
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r tests/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=. $(BIN)/lint-imports --no-cache
	shellcheck .ci/run tests/*.sh

types: $(STAMP)  ## what runs in jobs also for the oldest Python of containers
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 -p launcher.work

fast: $(STAMP)  ## unit and golden tests, on every core
	$(PYTEST) -q -n auto --dist worksteal -m "unit or golden"

engines: $(STAMP) $(TRL)  ## the engines' environments and the demo model, kept under ~/.cache/swiftlaunch
	$(BIN)/swiftlaunch env sync --site local $(ENGINES)
	$(BIN)/swiftlaunch models fetch --site local $(MODEL)

$(TRL): | $(STAMP)  ## what losses are compared with
	rm -rf $@.part
	$(BIN)/python -m pip install --quiet --no-deps --target $@.part -r tests/train/trl.txt
	mv $@.part $@

demo: $(STAMP)  ## the whole chain on this machine, no GPU needed
	$(BIN)/swiftlaunch env sync --site local train transformers gptq
	$(BIN)/swiftlaunch models fetch --site local $(MODEL)
	$(BIN)/swiftlaunch submit recipes/sft-smollm2-cpu.toml --site local --follow

test: lint types fast engines  ## every test that can run on this machine
	@tests/system-packages.sh slurm
	$(PYTEST) -n 3 --dist loadfile -m "local or slurm or layout or e2e"  # most of the time they wait

chaos: $(STAMP)  ## training on a real cluster while things break; SEED=7 FAULTS=30
	@tests/system-packages.sh slurm
	$(BIN)/swiftlaunch env sync --site local train
	$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) --faults $(FAULTS)

equivalence: $(STAMP)  ## every method, tuner, model and layout against one process; writes docs/equivalence.md
	$(BIN)/swiftlaunch env sync --site local train
	$(BIN)/python -m tests.train.write_equivalence

bench: $(STAMP) $(TRL)  ## what a submission costs beside bare sbatch, training beside other loops; writes docs/benchmarks.md
	@tests/system-packages.sh slurm
	$(BIN)/python -m tests.bench
	$(BIN)/swiftlaunch env sync --site local train sharded
	$(BIN)/swiftlaunch models fetch --site local $(MODEL)
	$(BIN)/python -m tests.bench.saves  # how long training stands for a checkpoint
	$(BIN)/python -m tests.bench.training  # tokens a second beside bare Megatron-core and TRL
	$(BIN)/python -m tests.bench.data  # packing and tokenisation of training data

cluster:  ## a real Slurm cluster on this machine, to try things on
	@tests/system-packages.sh slurm
	$(PYTHON) tests/slurm/cluster.py up $(CLUSTER)
	@echo 'to use it:  eval "$$(tests/slurm/cluster.py env $(CLUSTER))"'
	@echo 'to end it:  tests/slurm/cluster.py down $(CLUSTER)'

docs: $(STAMP)  ## write the generated pages of docs/ again
	$(BIN)/python docs/generate.py

golden: $(STAMP)  ## write the golden files again; read the diff
	$(PYTEST) -q tests/golden --update-golden

wheel: $(STAMP)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .hypothesis
