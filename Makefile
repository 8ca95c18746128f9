# Every job of the project. CI runs exactly these (.ci/run).
PY := .venv/bin/python
SUITES ?= unit arch guides cloud contract vm
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup demo dev check fmt test test-contract test-vm bench docs kind

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install Debian packages, the virtual environment and the images; quick when all is there
	@tools/setup

demo: setup ## start a cloud and boot VMs of two tenants, with proof that they cannot see each other
	@$(PY) -m pileus.lab.demo

dev: setup ## run a cloud on this machine until ctrl-c
	@.venv/bin/pileus up

check: ## lint, format, types, import rules, house rules, generated docs and schemas current
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache
	$(PY) -m tools.reference --check
	$(PY) -m tools.check_schema
	$(PY) -m tools.suites arch

fmt: ## format, and mend what the linter can
	.venv/bin/ruff check --fix-only
	.venv/bin/ruff format

test: ## all suites, real VMs included (SUITES="unit cloud" runs some)
	@$(PY) -m tools.suites $(SUITES)

test-contract: ## fakes against the real QEMU, Open vSwitch and PostgreSQL
	@$(PY) -m tools.suites contract

test-vm: ## real VMs; needs root
	@$(PY) -m tools.suites vm

bench: ## every benchmark: JSON lines as they come, a table at the end
	@$(PY) -m benchmarks

docs: ## write the generated reference, the schemas and the tree in DEVELOPMENT.md
	$(PY) -m tools.reference
	$(PY) -m tools.check_schema --write

kind: ## start a new kind: make kind NAME=mirror.session
	$(PY) -m tools.new_kind $(NAME)
