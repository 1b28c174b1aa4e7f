# One environment in .venv, made once and again whenever pyproject.toml changes.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv demo test test-slow test-cuda lint bench clean

venv: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[ray,fast,onnx,postgres,web,gguf,compressed-tensors,text,detection,onnx-source,timm,dev]'
	touch $@

demo: venv
	$(BIN)/apportion search examples/digits.yaml
	$(BIN)/python examples/best_run.py examples/apportion.sqlite | xargs -I RUN \
	  $(BIN)/apportion export RUN --store sqlite:///examples/apportion.sqlite -o demo/
	@echo "layer database: databases/digits   run store: examples/apportion.sqlite   exported model: demo/"

test: venv
	$(BIN)/python -m pytest -m "not slow and not cuda" -rs --numprocesses 2 --no-loadscope-reorder

test-slow: venv
	$(BIN)/python -m pytest -m slow

test-cuda: venv
	$(BIN)/python -m pytest tests/cuda

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The folder with the ResNet-20, its images and the published figures (see benchmarks/resnet20.py).
DATA ?= ../shared/data

bench: venv
	$(BIN)/python benchmarks/resnet20.py --data $(DATA)

clean:
	rm -rf databases demo examples/*.sqlite*
