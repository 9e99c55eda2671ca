# `make demo` runs the main job on a shipped sample; `make test` runs lint, types and every test.
# Both create .venv first. PYTHON chooses the interpreter (3.11 or newer).

PYTHON ?= python3
BIN := .venv/bin
SAMPLE := sample_models/digits_cnn.onnx

.PHONY: demo test lint clean

demo: .venv/installed
	mkdir -p demo
	$(BIN)/compress $(SAMPLE) -o demo/digits_cnn.int8.onnx --force \
	  --calibration sample_models/digits32_calibration.npz --data sample_models/digits32_test.npz

test: .venv/installed-test lint
	$(BIN)/python -m pytest

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/installed-test: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@ .venv/installed

clean:
	rm -rf .venv demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
