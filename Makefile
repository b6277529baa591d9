# make run: from a clone to results/render_report/report.html.   make test: lint and tests.   Nothing is installed twice.
PYTHON ?= python3
# Another build of torch, e.g. your CUDA one:  make run TORCH="torch==2.13.0 --index-url <its index>"
TORCH ?= torch==2.13.0
CORES ?= all

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Not into the environment: Snakemake imports every installed executor at each start.
SLURM_PLUGIN := $(CURDIR)/.cache/slurm-plugin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
export HF_HUB_OFFLINE ?= 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: run test test-slow test-slurm engines-check families-check planted-check coverage-check lint lock clean setup
.DELETE_ON_ERROR:

run: $(READY)
	snakemake --cores $(CORES)

setup: $(READY)

$(READY): requirements/lock.txt requirements/embedded.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "twohop needs Python >= 3.11; say which: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing (two to six minutes, once)"
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) $(TORCH)
	@$(PIP) --no-deps --require-hashes -r requirements/lock.txt
	@$(PIP) --no-deps --require-hashes -r requirements/embedded.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/pyright
	$(BIN)/lint-imports

test: $(READY) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not slurm"

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow --timeout 3600

# A real Slurm on this machine, about 10 minutes: as root, after  apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
test-slurm: $(SLURM_PLUGIN)/.ready
	PYTHONPATH=$(SLURM_PLUGIN) $(BIN)/python -m pytest -m slurm -rs tests/workflow/test_slurm.py --timeout 1500

$(SLURM_PLUGIN)/.ready: requirements/slurm.txt $(READY)
	@mkdir -p $(SLURM_PLUGIN)
	@$(PIP) --no-deps --require-hashes --upgrade --target $(SLURM_PLUGIN) -r requirements/slurm.txt
	@touch $@

# Every scenario between Snakemake and DVC, as a table; Slurm's only where it is installed (see test-slurm).  make engines-check WORDS="crash pull"
engines-check: $(SLURM_PLUGIN)/.ready
	PYTHONPATH=$(SLURM_PLUGIN) $(BIN)/python tests/workflow/engines_check.py $(WORDS)

# Every family of models: contract tests and the whole tiny study, as docs/families.md.  make families-check FAMILIES="gemma3 mllama": only these
families-check: $(READY)
	$(BIN)/python tests/workflow/families_check.py $(FAMILIES)

# Models of which the truth is known, and how often intervals cover it: the tables of docs/instrument.md
planted-check: $(READY)
	$(BIN)/python tests/instrument/planted.py

coverage-check: $(READY)
	$(BIN)/python tests/instrument/interval_coverage.py $(STUDIES)

lock:
	uv pip compile requirements/requirements.in --override requirements/no-torch.txt --universal --python-version 3.11 \
	  --generate-hashes --no-emit-package torch --no-emit-package docopt --no-annotate --no-header --quiet --output-file requirements/lock.txt

clean:
	rm -rf $(VENV) results logs .snakemake .cache
