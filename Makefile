# Everything runs in .venv, which is made and brought up to date when needed. Another interpreter: make PYTHON=python3.12 run
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help run test test-avx2 test-wheel test-all lint docs tables neighbours

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(INSTALLED) ## Calibrate, quantize, sample and score the built-in testbed (TSQ-TSW, W6A8)
	$(BIN)/python run.py quant=tsq_tsw bits=w6a8

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile
test: $(INSTALLED) ## Run the tests that take seconds, file by file on every core
	$(PYTEST)

# The variables are torch's and oneDNN's. ONNX Runtime, OpenVINO and what is compiled here do not follow them.
test-avx2: $(INSTALLED) ## Run the tests of backends, exports and methods as on a CPU without AVX-512 and VNNI
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PYTEST) tests/backends tests/export tests/methods

test-wheel: $(INSTALLED) ## Build a wheel, install it elsewhere and run it there
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_wheel.py

test-all: $(INSTALLED) ## Run every test
	$(BIN)/python -m pytest

lint: $(INSTALLED) ## Check style, formatting and that imports point down
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

docs: $(INSTALLED) ## Build the site in docs/ into site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

SIDE_BY_SIDE := $(if $(JOBS),--jobs $(JOBS))

# Only missing runs are computed. The alphas come first: the other experiments use those that are chosen. Without the
# last file of their choice, they are chosen again.
CHOSEN := results/shapes/search_alpha.md
EXPERIMENTS := testbed table1 table2 table3 table4 table5 figure1 figure2 figure4
tables: $(INSTALLED) results/sizes_opensora.md results/sizes_models.md results/flops_models.md ## Compute the testbed's tables and figures; write results/ and the tables in README.md and docs/
	@todo=$$($(BIN)/python -m vdq.commands.status alpha $(EXPERIMENTS)) || exit 1; \
	case "$$todo" in alpha*) \
		rm -f $(CHOSEN) && $(BIN)/python -m vdq.commands.run_missing $(SIDE_BY_SIDE) alpha || exit 1 ;; \
	esac; \
	if [ ! -f $(CHOSEN) ]; then \
		$(BIN)/python run.py 'stages=[choose_alpha,search_alpha]' experiment=alpha && todo=again || exit 1; \
	fi; \
	if [ -n "$$todo" ]; then $(BIN)/python -m vdq.commands.run_missing $(SIDE_BY_SIDE) $(EXPERIMENTS); fi
	ls $(addprefix runs/benchmarks/,linear_*.json block_*.json sampler_*.json) > /dev/null 2>&1 || \
		$(BIN)/python run.py experiment=table6 'stages=[benchmark]'
	$(BIN)/python run.py 'stages=[tabulate]' quant=tsq_tsw bits=w6a8
	$(BIN)/python -m vdq.shapes.card results/shapes/weights.md
	$(BIN)/python -m vdq.reports.readme

neighbours: $(INSTALLED) ## Compare every method with three noises, and take static_plus apart (about an hour)
	$(BIN)/python -m vdq.commands.run_missing $(SIDE_BY_SIDE) neighbours ablation
	$(BIN)/python run.py 'stages=[tabulate]' quant=tsq_tsw bits=w6a8
	$(BIN)/python -m vdq.reports.readme

results/sizes_models.md: vdq/commands/sizes_models.py vdq/commands/sizes.py vdq/quant/report.py | $(INSTALLED)
	$(BIN)/python -m vdq.commands.sizes_models $@

results/flops_models.md: vdq/commands/flops_models.py vdq/benchmark/work.py | $(INSTALLED)
	$(BIN)/python -m vdq.commands.flops_models $@

results/sizes_opensora.md: vdq/commands/sizes.py vdq/quant/report.py vdq/quant/operations.py | $(INSTALLED)
	$(BIN)/python -m vdq.commands.sizes $@

$(INSTALLED): pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; try make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
