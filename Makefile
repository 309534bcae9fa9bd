# demo: the whole pipeline on embedded data. demo-slurm: the same through a Slurm on this machine. test: the tests.
# wheel: the package with the engine's kernels, for any Linux of this kind of processor, in dist/.
# lint: style and types. bench: how fast the search is. bench-engine: how fast inference is. docs: configuration.md, api.md.
# golden: digests of results, see tests/helpers/golden.py. gpu-check: a folder for tests/gpu/check.sh, see docs/gpu.md.
# torture: attacks of all kinds, some of each; ARGS="--large --minutes 120 --table table.md" for a whole campaign.
# Each target sets up what it needs. ARGS passes options to most of them.

PYTHONS := python3.11 python3.12 python3.13 python3
CHECK := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON := $(shell for p in $(PYTHONS); do \
	$$p -c '$(CHECK)' 2>/dev/null && { command -v $$p; break; }; done)
BIN := .venv/bin
CORES ?= all
DEMO := $(BIN)/snakemake --cores $(CORES) --profile profiles/demo

# figure-engine: docs/images/engine_zeros.png, measured here.
.PHONY: demo demo-slurm test torture lint bench bench-engine figure-engine gpu-check golden evidence docs wheel clean

demo: .venv/seam
	@$(DEMO) $(ARGS)

demo-slurm: .venv/dev
	@$(BIN)/pytest tests/workflow/demo_on_slurm.py $(ARGS)

# All tests run in two processes of one thread each, the longest files first (tests/conftest.py), with coverage.
# With ARGS one process runs: tests/unit unless ARGS names a path below tests/. While you work, say
# make test ARGS="-k masks", or make test ARGS=tests/workflow/test_envs.py.
ALL_TESTS := --numprocesses 2 --dist loadfile --no-loadscope-reorder --cov

test: .venv/dev
	@$(if $(ARGS),$(BIN)/pytest $(if $(findstring tests/,$(ARGS)),,tests/unit) $(ARGS),OMP_NUM_THREADS=1 $(BIN)/pytest $(ALL_TESTS))

SNAKEFILES := Snakefile workflow/Snakefile workflow/rules docs/examples/module/Snakefile

lint: .venv/dev
	$(BIN)/ruff check workflow tests
	$(BIN)/ruff format --check workflow tests
	$(BIN)/snakefmt --check $(SNAKEFILES)
	$(BIN)/snakemake --lint
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: .venv/seam
	@$(BIN)/python workflow/scripts/bench.py $(ARGS)

bench-engine: .venv/seam
	@$(BIN)/python workflow/scripts/bench_engine.py $(ARGS)

figure-engine: .venv/seam
	@PYTHONPATH=workflow/scripts $(BIN)/python workflow/scripts/plot_engine.py $(ARGS)

gpu-check: .venv/seam
	@$(BIN)/python tests/gpu/prepare.py $(if $(DATA),--data "$(DATA)") $(ARGS)

torture: .venv/dev
	@PYTHONPATH=tests:tests/helpers:workflow/scripts $(BIN)/python -m torture $(ARGS)

golden: .venv/dev
	PYTHONPATH=tests/helpers:workflow/scripts $(BIN)/python tests/helpers/golden.py

# The table of a config in configs/, over all SEEDS: configs/README.md. OVER: more configs, merged last.
CONFIG ?= cifar100-ten
SEEDS ?= 0
# Runs with other configs in OVER get folders of their own, so that none replaces the results of another.
SPACE := $() $()
EVIDENCE = evidence/$(subst $(SPACE),+,$(strip $(CONFIG) $(basename $(notdir $(OVER)))))

evidence: .venv/seam
	@mkdir -p data
	@set -e; for seed in $(SEEDS); do \
		mkdir -p $(EVIDENCE)/seed$$seed; for folder in data configs; do ln -sfn "$(CURDIR)/$$folder" $(EVIDENCE)/seed$$seed/$$folder; done; \
		$(BIN)/snakemake --cores $(CORES) --directory $(EVIDENCE)/seed$$seed --rerun-incomplete \
			--configfile configs/$(CONFIG).yaml $(OVER) --config seed=$$seed $(ARGS); \
	done
	@$(BIN)/python workflow/scripts/collect_evidence.py $(EVIDENCE)/evidence.csv $(EVIDENCE)/seed*

docs: .venv/seam
	$(BIN)/python workflow/scripts/document_config.py docs/configuration.md
	$(BIN)/python workflow/scripts/document_api.py docs/api.md

# The compiler of the package ziglang links against any version of glibc. The libraries run on this one and later ones.
GLIBC := 2.17
MACHINE := $(shell uname -m)

wheel: .venv/dev
	@rm -rf dist
	CC="$(CURDIR)/$(BIN)/python -I -m ziglang cc -target $(MACHINE)-linux-gnu.$(GLIBC) -s" $(BIN)/pip wheel --quiet \
		--disable-pip-version-check --no-deps --wheel-dir dist \
		--config-settings=--build-option=--plat-name=manylinux_$(subst .,_,$(GLIBC))_$(MACHINE) .
	@ls dist/*manylinux*.whl || { echo "The compiler failed: see pip wheel -v."; exit 1; }

.venv/python:
	@case "$(CURDIR)" in *[\ {}]*) echo "Snakemake cannot work in $(CURDIR), which has a space or a brace in its path: move the clone."; exit 1;; esac
	@"$(PYTHON)" -c '$(CHECK)' 2>/dev/null || { echo "SeaM needs Python 3.11, 3.12 or 3.13 with the module venv, and none of $(PYTHONS) on the PATH is one: install one, or run make PYTHON=/path/to/it."; exit 1; }
	@echo "Creating .venv with $(PYTHON). The packages take about 6 GB and some minutes."
	@$(PYTHON) -m venv .venv
	@touch $@

# HASHES=1 installs only packages whose SHA-256 envs/hashes.txt has. Wheels of your own then need a line there.
SEAM := $(if $(HASHES),--require-hashes -r envs/hashes.txt,-r envs/seam.txt)

.venv/seam: envs/seam.txt envs/constraints.txt | .venv/python
	@$(BIN)/pip install --quiet --disable-pip-version-check $(SEAM)
	@touch $@

# For the engines openvino and openvino-int8. pip checks the hashes that the file has.
.venv/openvino: envs/openvino.txt .venv/seam
	@$(BIN)/pip install --quiet --disable-pip-version-check -r envs/openvino.txt
	@touch $@

.venv/dev: envs/dev.txt .venv/seam
	@$(BIN)/pip install --quiet --disable-pip-version-check -r envs/dev.txt
	@touch $@

clean:
	rm -rf .venv envs/.built
