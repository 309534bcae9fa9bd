# demo: the whole pipeline on embedded data. demo-slurm: the same through a Slurm, on this machine. test: the tests. bench:
# how fast the search is. bench-engine: how fast inference is. Each sets up what it needs.

PYTHONS := python3.11 python3.12 python3.13 python3
CHECK := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON := $(shell for p in $(PYTHONS); do \
	$$p -c '$(CHECK)' 2>/dev/null && { command -v $$p; break; }; done)
BIN := .venv/bin
CORES ?= all
DEMO := $(BIN)/snakemake --cores $(CORES) --profile profiles/demo

.PHONY: demo demo-slurm test lint bench bench-engine docs clean

demo: .venv/seam
	@$(DEMO) $(ARGS)
	@echo
	@$(BIN)/python workflow/scripts/summarise.py results/tables/summary.csv
	@echo
	@echo "Tables are in results/tables, figures in results/figures, the models in results/direct, the students in results/indirect."

demo-slurm: .venv/dev
	@$(BIN)/pytest tests/demo_on_slurm.py $(ARGS)

# All tests go in two processes of one thread, a file's in one of them; those that take longest first (tests/conftest.py).
ALL_TESTS := --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: .venv/dev
	@$(if $(ARGS),$(BIN)/pytest $(ARGS),OMP_NUM_THREADS=1 $(BIN)/pytest $(ALL_TESTS))

lint: .venv/dev
	$(BIN)/ruff check workflow tests
	$(BIN)/ruff format --check workflow tests
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint

bench: .venv/seam
	@$(BIN)/python workflow/scripts/bench.py $(ARGS)

bench-engine: .venv/seam
	@$(BIN)/python workflow/scripts/bench_engine.py $(ARGS)

docs: .venv/seam
	$(BIN)/python workflow/scripts/document_config.py docs/configuration.md

.venv/python:
	@case "$(CURDIR)" in *[\ {}]*) echo "Snakemake cannot work in $(CURDIR), which has a space or a brace in its path: move the clone."; exit 1;; esac
	@"$(PYTHON)" -c '$(CHECK)' 2>/dev/null || { echo "SeaM needs Python 3.11, 3.12 or 3.13 with the module venv, and none of $(PYTHONS) on the PATH is one: install one, or run make PYTHON=/path/to/it."; exit 1; }
	@echo "Making .venv with $(PYTHON); the packages take about 6 GB and some minutes."
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/seam: envs/seam.txt envs/constraints.txt | .venv/python
	@$(BIN)/pip install --quiet --disable-pip-version-check -r envs/seam.txt
	@touch $@

.venv/dev: envs/dev.txt .venv/seam
	@$(BIN)/pip install --quiet --disable-pip-version-check -r envs/dev.txt
	@touch $@

clean:
	rm -rf .venv envs/.built
