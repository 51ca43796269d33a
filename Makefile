# Each target makes the virtual environment it needs. ARGS="..." is passed on to the command.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PIP_INSTALL := $(PIP) --constraint constraints.txt
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help serve test check demo format docs docs-serve docs-reference bench simulate clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

serve: $(VENV)/.serve  ## Run a controller on an embedded store. ARGS="--port 21001 ..."
	@exec $(BIN)/controller serve $(ARGS)

demo: $(VENV)/.serve  ## See a controller, three workers and a load at work for half a minute.
	@exec $(BIN)/python -m controller.examples.demo $(ARGS)

test: $(VENV)/.test  ## Run the tests, two files at once, with coverage. ARGS="tests/store -k lottery"
	@$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),-n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term --cov-fail-under=95)

check: $(VENV)/.check  ## Lint, format, types and floors, without changing anything.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.check  ## Format the code and mend what the linter can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs  ## Build the documentation in site/. Warnings are errors.
	@$(BIN)/zensical build --clean --strict
	@$(BIN)/python docs/scripts/check_site.py

docs-serve: $(VENV)/.docs  ## Serve the documentation on http://localhost:8000 and rebuild it on changes.
	@exec $(BIN)/zensical serve --dev-addr localhost:8000

docs-reference: $(VENV)/.docs  ## Generate the tables of the reference pages from the code.
	@$(BIN)/python docs/scripts/reference.py

bench: $(VENV)/.test  ## Measure dispatches beside the stock controller. ARGS="--seconds 5"
	@exec $(BIN)/python benchmarks/dispatch.py $(ARGS)

simulate: $(VENV)/.bench  ## Simulate how long requests wait under each policy. ARGS="--plots docs/images"
	@exec $(BIN)/python benchmarks/dispatch_quality.py $(ARGS)

clean:  ## Remove the virtual environment.
	rm -rf $(VENV)

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; name one: make PYTHON=python3.11 ...")'
	@echo "Making a virtual environment in $(VENV), once ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.serve: $(VENV)/.venv pyproject.toml constraints.txt
	@echo "Installing the controller ..."
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.serve
	@echo "Installing what the tests need ..."
	@$(PIP_INSTALL) --group test
	@# FastChat's API server streams only with pydantic 1, and with a FastAPI that takes that.
	@$(PIP) --target $(VENV)/pydantic-1 --upgrade --no-deps pydantic==1.10.26 fastapi==0.115.14 starlette==0.46.2
	@touch $@

$(VENV)/.check: $(VENV)/.test
	@echo "Installing linter and type checker ..."
	@$(PIP_INSTALL) --group check
	@touch $@

$(VENV)/.bench: $(VENV)/.serve
	@echo "Installing what the plots need ..."
	@$(PIP_INSTALL) --group bench
	@touch $@

$(VENV)/.docs: $(VENV)/.serve
	@echo "Installing what the documentation needs ..."
	@$(PIP_INSTALL) --group docs
	@touch $@
