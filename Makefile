# `make demo` and `make test` need python3 (3.11+, with venv) and make; everything else they set up themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install demo test lint docs bench clean

help:
	@echo "make demo     the main job on real sample data; prints where the report is"
	@echo "make test     the test suite"
	@echo "make install  the environment .venv, made by all others as well"
	@echo "make lint     ruff, mypy, import-linter"
	@echo "make docs     the documentation, warnings are errors"
	@echo "make bench    benchmarks and long runs (minutes)"
	@echo "make clean    remove .venv and what was built"

install:
	@$(PYTHON) tools/make_venv.py

demo: install
	$(BIN)/tapetum demo

test: install
	$(BIN)/python tools/run_tests.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: install
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv docs/_build
