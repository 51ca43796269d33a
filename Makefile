# Each target creates the virtual environment that it needs. ARGS="..." is passed to the command.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# Where `make test-engines` installs the engines, and the Python for which they have packages.
ENGINES ?= .cache/engines
ENGINES_PYTHON ?= python3.11

# The packages of the SBOM and the audit are not in $(VENV): with some of them, jsonschema takes 2 s to import.
SUPPLY := $(VENV)/supply

# Install packages with uv, which takes seconds. If uv is missing or cannot use pip's package index, use pip.
# The second argument is the environment, if it is not $(VENV).
uv = VIRTUAL_ENV=$(or $(1),$(VENV)) $(BIN)/uv pip install --quiet
pip = $(BIN)/python -m pip --python $(or $(1),$(VENV))/bin/python install --quiet --disable-pip-version-check
install = { [ -x $(BIN)/uv ] && $(call uv,$(2)) $(1) 2>/dev/null; } \
	|| { echo "  with pip, which takes about a minute ..."; $(call pip,$(2)) $(1); }

# The tests start hundreds of processes. Without this, each would compile all its modules where the variable is set.
unexport PYTHONDONTWRITEBYTECODE

# Five processes even on two cores, because many tests wait for other processes.
PYTEST_OPTIONS := -q -n 5 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help serve test test-all test-engines coverage history soak check demo format docs docs-serve docs-reference bench simulate sbom \
	audit mutants clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

serve: $(VENV)/.serve  ## Run a controller on an embedded store. ARGS="--port 21001 ..."
	@exec $(BIN)/controller serve $(ARGS)

demo: $(VENV)/.serve  ## Show a controller, three workers and simulated clients in the terminal for half a minute.
	@exec $(BIN)/python -m controller.examples.demo $(ARGS)

test: $(VENV)/.compiled  ## Run the quick tests, in about three minutes. ARGS="tests/store -k lottery" selects others.
	@$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),--part quick $(PYTEST_OPTIONS))

test-all: $(VENV)/.test  ## Run the rest of the tests: long ones, and those that need containers or redis-server.
	@$(BIN)/python -m pytest --part rest $(PYTEST_OPTIONS) $(ARGS)

test-engines: $(VENV)/.test $(ENGINES)/.installed  ## Test with real vLLM and transformers serve. Installs 3.4 GB in ten minutes, once.
	@ENGINES="$(ENGINES)" $(BIN)/python -m pytest --part engines -q --durations 5 -o timeout=1800 $(if $(ARGS),$(ARGS),tests/system)

coverage: $(VENV)/.test  ## Run the quick tests and report the lines that they do not reach. Fails below 90 %.
	@$(BIN)/python -m pytest --part quick $(PYTEST_OPTIONS) --cov --cov-report=term --cov-fail-under=90 $(ARGS)

history: $(VENV)/.test  ## Check a long history of calls and faults. ARGS="--seconds 1800 --seed 7"
	@PYTHONPATH=benchmarks exec $(BIN)/python -m tests.history $(ARGS)

soak: $(VENV)/.test  ## Let 500 workers come and go for half an hour, with faults. ARGS="--seconds 600"
	@PYTHONPATH=benchmarks exec $(BIN)/python -m tests.soak $(ARGS)

check: $(VENV)/.check  ## Check lint rules, format, types, layers and licences, without changing anything.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python supply/dependencies.py

format: $(VENV)/.check  ## Format the code and fix what the linter can fix.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs  ## Build the documentation in site/. Warnings are errors.
	@$(BIN)/zensical build --clean --strict
	@$(BIN)/python docs/scripts/check_site.py

docs-serve: $(VENV)/.docs  ## Serve the documentation on http://localhost:8000 and rebuild it on changes.
	@exec $(BIN)/zensical serve --dev-addr localhost:8000

docs-reference: $(VENV)/.docs  ## Generate the tables of the reference pages from the code.
	@$(BIN)/python docs/scripts/reference.py

bench: $(VENV)/.test  ## Compare the dispatch rate with FastChat's controller. ARGS="--seconds 5"
	@exec $(BIN)/python benchmarks/dispatch.py $(ARGS)

simulate: $(VENV)/.bench  ## Simulate how long requests wait under each policy. ARGS="--plots docs/images"
	@exec $(BIN)/python benchmarks/dispatch_quality.py $(ARGS)

sbom: $(SUPPLY)/.installed  ## Write sbom.json: the packages of an installation and their licences, in the CycloneDX format.
	@$(PYTHON) -m venv --clear --without-pip $(VENV)/installation
	@$(call install,--constraint constraints.txt .,$(VENV)/installation)
	@$(SUPPLY)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-format JSON \
		--output-file sbom.json $(VENV)/installation/bin/python
	@echo "sbom.json lists the packages."

audit: $(SUPPLY)/.installed  ## Look up known vulnerabilities of all pinned packages, and print a message if no service can be reached.
	@$(SUPPLY)/bin/python supply/audit.py

mutants: $(VENV)/.mutants  ## Report changes of the code that no test notices. ARGS="--sample 50 lua/leases"
	@exec nice -n 19 $(BIN)/python -m tests.mutants $(ARGS)

clean:  ## Remove the virtual environment.
	rm -rf $(VENV)

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed. Name one: make PYTHON=python3.11 ...")'
	@echo "Creating a virtual environment in $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(call pip) --upgrade 'pip>=25.1' 2>/dev/null || $(call pip) --upgrade 'pip>=25.1'
	@$(call pip) uv 2>/dev/null || echo "uv cannot be installed. Using pip, which takes longer."
	@touch $@

$(VENV)/.serve: $(VENV)/.venv pyproject.toml constraints.txt
	@echo "Installing the controller and the packages that it needs ..."
	@$(call install,--constraint constraints.txt --editable .)
	@touch $@

$(VENV)/.test: $(VENV)/.serve
	@echo "Installing the packages of the tests, including FastChat ..."
	@$(call install,--constraint constraints.txt --group test)
	@# FastChat's API server streams only with pydantic 1, and with a FastAPI that accepts it.
	@$(call install,--target $(VENV)/pydantic-1 --upgrade --no-deps pydantic==1.10.26 fastapi==0.115.14 starlette==0.46.2)
	@touch $@

# Otherwise each of the five processes compiles all modules when it starts for the first time.
$(VENV)/.compiled: $(VENV)/.test
	@echo "Compiling the tests ..."
	@$(BIN)/python -m pytest --collect-only -q >/dev/null 2>&1 || true # pytest reports what it cannot import when it runs the tests
	@touch $@

$(ENGINES)/.installed: tests/engines/requirements.txt
	@echo "Installing vLLM for CPUs and transformers in $(ENGINES). This takes about ten minutes and 3.4 GB ..."
	@$(ENGINES_PYTHON) -m venv $(ENGINES)
	@$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	@touch $@

$(VENV)/.check: $(VENV)/.test $(VENV)/.docs
	@echo "Installing linters and the type checker ..."
	@$(call install,--constraint constraints.txt --group check)
	@touch $@

$(SUPPLY)/.installed: $(VENV)/.venv pyproject.toml constraints.txt
	@echo "Installing the packages of the SBOM and the audit ..."
	@$(PYTHON) -m venv --without-pip $(SUPPLY)
	@$(call install,--constraint constraints.txt --group supply,$(SUPPLY))
	@touch $@

$(VENV)/.bench: $(VENV)/.serve
	@echo "Installing the packages of the plots ..."
	@$(call install,--constraint constraints.txt --group bench)
	@touch $@

$(VENV)/.mutants: $(VENV)/.test
	@echo "Installing the packages that change Python modules ..."
	@$(call install,--constraint constraints.txt --group mutants)
	@touch $@

$(VENV)/.docs: $(VENV)/.serve
	@echo "Installing the packages of the documentation ..."
	@$(call install,--constraint constraints.txt --group docs)
	@touch $@
