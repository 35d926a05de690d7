# `make help` lists the targets; all of them set up what they need.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo gallery test docs soak lock lint format bench clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The files that requirements.lock knows by their hashes, then what is left, as a local build of torch, by its version.
.venv/.user: pyproject.toml constraints.txt requirements.lock | .venv/bin/python
	$(BIN)/python -m pip install --quiet --dry-run --report .venv/report.json -c constraints.txt -e .
	$(BIN)/python locked.py .venv/report.json > .venv/locked.txt
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r .venv/locked.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

.venv/.developer: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@ .venv/.user

demo: .venv/.user  ## the whole path on scikit-learn's digits, within five minutes: runs/demo
	$(BIN)/s2ap-diag demo --out runs/demo

GRID ?= gallery
OUT ?= figures/$(GRID)

gallery: .venv/.user  ## the paper's tables and figures on digits, an hour and a half, goes on where it stopped; GRID=gallery-full
	$(BIN)/s2ap-diag sweep $(GRID) --runs runs/$(GRID)
	$(BIN)/python -m figures --runs runs/$(GRID) --out $(OUT) --dataset digits
	$(BIN)/python -m figures.cheaper --runs runs/$(GRID) --out $(OUT)
	$(BIN)/python -m figures --runs runs/$(GRID) --out $(OUT)/autoattack --dataset digits --attack autoattack --only table1
	$(BIN)/s2ap-diag report runs/$(GRID)

test: .venv/.developer  ## every test, two at a time
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
		echo "the report is not tested in a browser; install one: apt-get install chromium chromium-driver"
	$(BIN)/python -m pytest -n 2 --dist worksteal

.venv/.writer: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

docs: .venv/.writer  ## pages to read, with both notebooks run: build/site/index.html; a dead link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

.venv/lock/bin/uv:
	$(PYTHON) -m venv .venv/lock
	.venv/lock/bin/python -m pip install --quiet uv==0.9.30

lock: .venv/lock/bin/uv  ## requirements.lock anew: the hashes of all files of the release install
	{ echo '# Made by `make lock`: the files of every package of the release install, on all platforms, by SHA-256.'; \
	  .venv/lock/bin/uv pip compile pyproject.toml -c constraints.txt --universal --generate-hashes --no-annotate \
	  --no-header --quiet --default-index https://pypi.org/simple; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

SOAK_MINUTES ?= 30
SOAK_TESTS ?= tests/robustness

soak: .venv/.developer  ## the tests of faults, with a hundred kills and two thousand generated calls; SOAK_MINUTES=3 for fewer
	S2AP_SOAK=$(SOAK_MINUTES) $(BIN)/python -m pytest -n 2 --dist worksteal $(SOAK_TESTS)

lint: .venv/.developer  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.developer  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

BENCH := runs/bench$(if $(QUICK),-quick).json

bench: .venv/.developer  ## ratios of time and memory on this machine, goes on where it stopped; QUICK=1 shows that all runs
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick) --json $(BENCH) --resume

clean:  ## remove the environment and the caches, keep the runs
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
