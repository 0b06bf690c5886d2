# `make run` and `make test` set up all that they need: Python 3.11 or newer, make and git are enough.
.DEFAULT_GOAL := help
.PHONY: help install run test test-slow lint lint-api check migrate migration bench bench-compare bench-scale check-timing image lock

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?= 8000

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## Make .venv with the locked development dependencies (done once)

$(VENV)/.installed: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV) || { echo "The module venv is missing: install it (Debian: apt install python3-venv)."; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-dev.txt
	@touch $@

run: install ## Start the service on http://localhost:8000 (PORT=...), on SQLite unless DATABASE_URL says otherwise
	$(BIN)/uvicorn src.api.app:app --port $(PORT)

test: install ## Run the tests, on SQLite and PostgreSQL (nothing to install)
	$(BIN)/pytest -m "not slow" -n logical $(COVERAGE)

test-slow: install ## Run the tests that take longer
	$(BIN)/pytest -m slow $(COVERAGE)

lint: install ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Nothing that probes ask can be wrong, so not every operation has a 4xx; the default of SERVER_PUBLIC_URL is localhost.
lint-api: install ## Check the OpenAPI document by the rules of Redocly and Spectral (needs Node.js 20 or newer)
	$(BIN)/python -m src openapi > .ci/openapi.json
	REDOCLY_TELEMETRY=off npx --yes @redocly/cli@2.77.0 lint --extends=recommended \
		--skip-rule=operation-4xx-response --skip-rule=no-server-example.com .ci/openapi.json
	npx --yes @stoplight/spectral-cli@6.16.3 lint --ruleset=.ci/spectral.yaml --fail-severity=warn .ci/openapi.json

check: COVERAGE := --cov --cov-append --cov-report= --cov-fail-under=0
check: lint test test-slow ## All that CI runs, and how much of the code it reached
	$(BIN)/coverage report
	@rm .coverage

migrate: install ## Bring the database of DATABASE_URL to this version's tables
	$(BIN)/python -m src migrate

migration: install ## Write a migration from the models: make migration m="add a column"
	$(BIN)/alembic revision --autogenerate -m "$(m)"

bench: install ## Measure what the documentation claims
	@status=0; for benchmark in floors reads_while_hashing user_pages abuse metrics; do \
		$(BIN)/python -m bench.$$benchmark || status=1; \
	done; exit $$status

bench-scale: install ## Measure what requests cost with a thousand users, and with a million
	$(BIN)/python -m bench.scale

check-timing: install ## Check that the time of an answer does not tell who has an account (BOUND=0.6, of an AUC)
	$(BIN)/python -m bench.timing $(BOUND)

bench-compare: install ## Compare the speed of two revisions: make bench-compare old=REV [new=REV]
	$(BIN)/python -m bench.compare $(old) $(new)

image: ## Build the container image
	docker build -t user-auth-service .

lock: ## Renew the locked dependencies (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-strip-extras $(UPGRADE) \
		pyproject.toml -o requirements.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-strip-extras $(UPGRADE) \
		pyproject.toml --group dev -c requirements.txt -o requirements-dev.txt
