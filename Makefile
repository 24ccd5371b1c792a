.PHONY: install test slow check build

install:
	python3 -m venv .venv
	.venv/bin/pip install --editable '.[dev]'

test:
	.venv/bin/python -m pytest -n auto

slow:
	.venv/bin/python -m pytest -m "slow or browser"

check:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

build:
	.venv/bin/python -m build
	.venv/bin/twine check dist/*
