# The commands of the README; `make help` lists them. Only Python >= 3.11 and make are needed: the rest goes into .venv.

PYTHON ?= python3
EXPERIMENTS ?= deep_mlp
QUESTIONS := deep_mlp critical_period controls weight_init engineering_tricks feedback_alignment data_scarcity mechanism convolution \
	short_term_memory blank_rows copy_task meta_learning transfer continual feedback_rivals anatomy
RESULTS ?= results
FLAGS ?=
BIN := .venv/bin
# Python compiles a module when it is first imported, which most never are, and keeps it. Where the environment turns this off,
# each process would compile all of JAX.
export PYTHONDONTWRITEBYTECODE =
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint .constraints.txt --editable
READY := .venv/.ready
DOCS_READY := .venv/.docs-ready

.DEFAULT_GOAL := help
.PHONY: help setup sweep confirm results bench bench-check test accelerators faults docs soak lint format lock clean

help:  ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

setup: $(READY)  ## Create .venv with the pinned versions (PYTHON=python3.12 chooses another Python).

$(READY): pyproject.toml .constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: ojax needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 setup")'
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[dev]'
	@touch $@

$(DOCS_READY): $(READY)
	$(INSTALL) '.[dev,docs]'
	@touch $@

NAMES = $(if $(filter all,$(EXPERIMENTS)),$(QUESTIONS),$(EXPERIMENTS))

# Each study is a command of its own, so what is finished is not run again. Each flagfile says how long it takes.
sweep: $(READY)  ## Run the main study (EXPERIMENTS=all: every study) into RESULTS=results and write its index.html.
	@sed -n 's/.*[;,] \([0-9]*\) minutes\? on two cores.*/\1/p' $(NAMES:%=experiments/flagfiles/%.flags) | \
		awk '{ total += $$1 } END { print "Studies: $(words $(NAMES)), about " total " minutes on two cores with the data of their flagfiles." }'
	@set -e; for name in $(NAMES); do \
		$(BIN)/python -m experiments.$$name --flagfile=experiments/flagfiles/$$name.flags --workdir=$(RESULTS)/$$name $(FLAGS); \
	done
	@$(BIN)/python -m experiments.report --workdir=$(RESULTS)

confirm: $(READY)  ## Run the headline comparisons, frozen in experiments/confirm.json, on seeds that no study used.
	$(BIN)/python -m experiments.confirm --flagfile=experiments/flagfiles/confirm.flags --workdir=$(RESULTS)/confirm $(FLAGS)

results: $(READY)  ## Write docs/how/results.md and the README's table from the studies in RESULTS=results.
	$(BIN)/python -m experiments.results --workdir=$(RESULTS)

bench: $(READY)  ## Time ojax against what one would write instead, into RESULTS/benchmark; writes the ratios of bench-check.
	$(BIN)/python -m experiments.benchmark --workdir=$(RESULTS)/benchmark $(FLAGS)

bench-check: $(READY)  ## Fail where ojax has become slower, by ratios to the committed ones; 2 minutes on an idle core.
	$(BIN)/python -m experiments.benchmark --check

# Two processes share the tests, a file at a time, as most of a test's commands use one core.
PYTEST := $(BIN)/python -m pytest --numprocesses=2 --no-loadscope-reorder
FAULTS := tests/experiments/faults_test.py

test: $(READY)  ## Run the tests but for those of `make faults`; 7 minutes on 2 cores, 4 with the programs of an earlier run.
	$(PYTEST) --dist=loadfile --ignore=$(FAULTS)

# The compilers alone: no accelerator is needed, or touched where there is one.
accelerators: $(READY)  ## Compile every experiment's programs for a TPU and a GPU that need not be here; 5 minutes.
	$(INSTALL) '.[dev,compile]'
	JAX_PLATFORMS=cpu $(PYTEST) --dist=loadgroup tests/accelerators.py

faults: $(READY)  ## Kill, stop and damage studies and jobs of several processes; about 2 minutes on 2 cores.
	$(PYTEST) --dist=load $(FAULTS)

# A notebook's kernel is a process of its own, so that two pages are executed at a time.
docs: $(DOCS_READY)  ## Build the documentation into docs/_build/html, every code block executed; 5 minutes.
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx -W --keep-going -q -E -a -j 2 docs docs/_build/html
	@echo "The documentation is in docs/_build/html/index.html"

soak: $(READY)  ## Try 1,000 kinds of nonsense a file, kill studies and jobs at 20 random moments; twenty minutes.
	HYPOTHESIS_PROFILE=many $(BIN)/python -m pytest -m hypothesis
	$(BIN)/python -m tests.soak

lint: $(READY)  ## Check style, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## Mend style and format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Pins for every platform and Python that ojax runs on; needs uv. The cuda and tpu extras are left free, as their
# versions follow the machine's drivers.
lock:  ## Renew the pinned versions in .constraints.txt.
	uv pip compile pyproject.toml --universal --python-version 3.11 --extra dev --extra docs --upgrade --no-annotate \
		--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' --output-file .constraints.txt

clean:  ## Remove .venv and caches; results stay.
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache docs/_build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
