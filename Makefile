# The environment is .venv; everything below runs in it. install.py installs: first what a run needs, and the rest when
# a target below asks for it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart install develop test test-slow test-exhaustive check types resolve docs format clean

quickstart: install  ## train SmolLM2-135M-Instruct by GRPO in a few minutes
	$(BIN)/lit-rlvr fit --config configs/quickstart.yaml --overwrite true
	@$(BIN)/python -c "import json; s = json.load(open('runs/quickstart/summary.json')); \
	print(f\"Held-out accuracy: {s['accuracy_before']:.3f} before, {s['accuracy_after']:.3f} after\", \
	f\"{s['steps']} steps ({s['train_seconds']:.0f} s of training). Picture: runs/quickstart/curves.png\")"

install: .venv/installed  ## what a run needs

.venv/installed: pyproject.toml constraints.txt install.py
	$(PYTHON) install.py
	touch $@

develop: .venv/developed  ## what tests, checks and documents need

.venv/developed: pyproject.toml constraints.txt install.py
	$(PYTHON) install.py dev docs
	touch .venv/installed $@

# Two workers, each with whole files, so that what a file shares (a vLLM engine, a server) is started once. In the order
# of their names the long files are in the middle, and neither worker waits for the other at the end.
# A worker that hangs ends the run (faulthandler_timeout in pyproject.toml); another one would hang in the same test.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test: develop  ## the tests that people wait for: one case of each kind
	$(PYTEST)

test-slow: develop  ## what takes longer: kills, learning runs, servers, more cases of each kind
	$(PYTEST) -m "slow and not exhaustive"

test-exhaustive: develop  ## before a release: more cases of what slow tests show
	$(PYTEST) -m exhaustive

check: docs types  ## formatting, lint, types, documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: develop
	$(BIN)/mypy

resolve: develop  ## every extra and both Dockerfiles, for other machines and versions of Python too
	.ci/resolve

docs: develop  ## the documentation as a site that opens without a server: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The site: site/index.html"

format: develop
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs dist site
