# Two commands: `make demo` and `make test`. Each does its own set-up, in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench docs clean

demo: .venv/installed
	$(BIN)/bench run demo

test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed-dev
	mkdir -p .benchmarks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/benchmarks --benchmark-enable --benchmark-only --benchmark-json=.benchmarks/speed.json; \
	held=$$?; $(BIN)/python -m tests.benchmarks.table .benchmarks/speed.json docs/speed.md && exit $$held

docs: .venv/installed
	$(BIN)/bench plugins --write docs
	$(BIN)/bench leaderboard

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch .venv/installed $@

clean:
	rm -rf .venv bench-runs .benchmarks *.egg-info
