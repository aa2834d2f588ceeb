# Torpor. `make help` lists the targets; CI and pre-commit call these and nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := eventing predictor api knative steps torpor tests bench examples scripts
# Two a core: tests of processes mostly wait.
WORKERS ?= 4
PROMPT ?= Why do hummingbirds fall into torpor at night? Answer in two sentences.

##@ For everybody

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z][a-z-]*:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: install ## Run one real job from zero to an answer and back to zero (PROMPT="...")
	@$(BIN)/torpor demo --prompt "$(subst ",\",$(PROMPT))"

demo-tools: install ## A job that calls tools, with an approval in the terminal while the predictor is asleep
	@$(BIN)/python scripts/demo_tools.py

demo-rag: install ## Ask this repository's own docs from zero, with citations, and the same again from the cache
	@$(BIN)/python scripts/demo_rag.py

up: install ## Run the embedded stack until Ctrl-C
	@$(BIN)/torpor up

# A test that fails at first fails the run (docs/adr/0180).
test: install ## Set up and pass all tests (WORKERS=0 for one after the other)
	@$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

##@ For developers

install: $(VENV)/.installed ## Virtual environment and every dependency (CPU)

$(VENV)/.installed: pyproject.toml scripts/install.py
	@$(PYTHON) scripts/install.py $(VENV)
	@touch $@

format: install ## Format and sort imports
	@$(BIN)/ruff format -q $(SOURCES) && $(BIN)/ruff check -q --fix $(SOURCES)

lint: install ## Style, spelling and the direction of imports
	@$(BIN)/ruff format -q --check $(SOURCES)
	@$(BIN)/ruff check -q $(SOURCES)
	@$(BIN)/lint-imports
	@$(BIN)/codespell eventing predictor api knative steps torpor docs README.md CONTRIBUTING.md CHANGELOG.md

docs: install ## The documentation as a site in .site (links are checked)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict

reference: install ## Write docs/reference from the code
	@PYTHONPATH=. $(BIN)/python scripts/reference.py

types: install ## mypy, strict
	@$(BIN)/mypy

test-unit: install ## Tests without processes (seconds)
	@$(BIN)/pytest -q tests/unit

test-faults: install ## Kill, cut and freeze real processes; TRIALS=200 for the long form
	@TORPOR_FAULT_TRIALS=$(or $(TRIALS),20) $(BIN)/pytest -q tests/faults tests/integration/test_predictor_real_engine.py

test-properties: install ## Other examples of the property tests than the ones CI runs, 2,000 of each
	@$(BIN)/pytest -q -n $(WORKERS) -m hypothesis --hypothesis-profile=search --timeout=1800 tests/unit

test-failovers: install ## Fail the store over by real sentinels, 50 times (FAILOVERS=n), under load and between a tool call's mark and its result
	@TORPOR_FAILOVERS=$(or $(FAILOVERS),50) $(BIN)/pytest -q tests/faults/test_failover.py tests/faults/test_tool_failover.py

test-turns: install ## Kill the predictor all along loops of five turns, SEEDS=20 of them with KILLS=60
	@TORPOR_TURN_SEEDS=$(or $(SEEDS),20) TORPOR_TURN_KILLS=$(or $(KILLS),60) $(BIN)/pytest -q tests/faults/test_tool_turns.py

test-calls: install ## Kill each process, and the tool, at each point of a tool call, KILLS=200 times for each effect class
	@TORPOR_CALL_KILLS=$(or $(KILLS),200) $(BIN)/pytest -q tests/faults/test_tool_callers.py

test-mcp: install ## Our MCP client by the protocol's own conformance suite (npm brings suite and Node 22)
	@npx -y -p node@22 -c '$(BIN)/pytest -q tests/contract/test_mcp_conformance.py'

soak: install ## Two api, two broker, three predictors under random faults for MINUTES=30; SEED=n draws the same again
	@TORPOR_SOAK_MINUTES=$(or $(MINUTES),30) TORPOR_SOAK_SEED=$(or $(SEED),$$RANDOM) $(BIN)/pytest -q -s tests/faults/test_soak.py

mutate: install ## How many small faults in the core its tests see: MUTANTS=20 of each group, drawn by SEED=1
	@$(BIN)/python -m tests.mutate --mutants $(or $(MUTANTS),20) --seed $(or $(SEED),1)

test-gpu: install ## Tests that need an NVIDIA GPU; they skip themselves without one
	@$(BIN)/pytest -q -m gpu tests/gpu

check: lint types docs test ## What CI runs

##@ Figures (bench/README.md)

bench: install ## One job's path: cold start, warm overhead, idle memory
	@$(BIN)/python -m bench.one_job

bench-peers: install ## The plumbing against Celery, RQ, arq, taskiq and dramatiq
	@$(BIN)/python -m bench.peers.peers

##@ Packages

wheel: ## Build wheel and sdist into dist/, and try both in fresh environments
	@rm -rf dist .venv-build .venv-wheel && $(PYTHON) -m venv .venv-build && .venv-build/bin/pip install -q build
	@.venv-build/bin/python -m build -q -o dist . && rm -rf .venv-build
	@for package in dist/*.whl dist/*.tar.gz; do \
	  rm -rf .venv-wheel && $(PYTHON) -m venv .venv-wheel && .venv-wheel/bin/pip install -q "$$package"; \
	  (cd / && for words in "--version" "--help" "submit --help" "doctor --help" "setup cpu --dry-run" \
	    "simulate --profile step --minutes 5"; do $(CURDIR)/.venv-wheel/bin/torpor $$words > /dev/null || exit 1; done); \
	done
	@.venv-wheel/bin/pip install -q "torpor[api,predictor,local]"
	@folder=$$(mktemp -d) && cd "$$folder" && $(CURDIR)/.venv-wheel/bin/torpor demo --engine seeded && rm -rf "$$folder"
	@rm -rf .venv-wheel && ls dist

sbom: ## The wheel's dependencies as CycloneDX, in dist/torpor.cdx.json (after `make wheel`)
	@rm -rf .venv-wheel .venv-sbom && $(PYTHON) -m venv .venv-wheel && $(PYTHON) -m venv .venv-sbom
	@.venv-wheel/bin/pip install -q dist/*.whl && .venv-wheel/bin/pip install -q "torpor[api,s3,traces]"
	@.venv-sbom/bin/pip install -q cyclonedx-bom
	@.venv-sbom/bin/cyclonedx-py environment .venv-wheel/bin/python --pyproject pyproject.toml -o dist/torpor.cdx.json
	@rm -rf .venv-wheel .venv-sbom && ls dist

##@ On a cluster

REPOSITORY ?= registry.example.com/torpor
TAG ?= 0.1.0
IMAGES := api broker steps predictor predictor-cpu
OVERLAYS := $(notdir $(wildcard manifests/overlays/*))

manifests: install ## Write manifests/ from manifests/values.yaml, then examine every overlay
	@$(BIN)/torpor render
	@for overlay in $(OVERLAYS); do $(BIN)/torpor doctor manifests/overlays/$$overlay || exit 1; done
	@$(BIN)/pytest -q tests/manifests

manifests-lint: install ## checkov on every built overlay, in its own environment (its pins differ)
	@test -x .venv-checkov/bin/checkov || ($(PYTHON) -m venv .venv-checkov && .venv-checkov/bin/pip install -q checkov)
	@for overlay in $(OVERLAYS); do kubectl kustomize manifests/overlays/$$overlay > .venv-checkov/$$overlay.yaml || exit 1; done
	@.venv-checkov/bin/checkov --config-file manifests/checkov.yaml $(foreach o,$(OVERLAYS),-f .venv-checkov/$(o).yaml)

images-lint: install ## hadolint on the Dockerfiles
	@$(BIN)/hadolint images/*.Dockerfile

images: ## Build all images (needs a container engine; REPOSITORY=... TAG=... ENGINE=docker BUILD_FLAGS=...)
	@for image in $(IMAGES); do \
	  $(or $(ENGINE),docker) build $(BUILD_FLAGS) -f images/$$image.Dockerfile -t $(REPOSITORY)/$$image:$(TAG) . || exit 1; done

test-containers: install ## Build the images of api, broker and predictor-cpu, run every process as its pod has it (root; podman, runc)
	@TORPOR_CONTAINERS=build $(BIN)/pytest -q tests/containers

images-push: ## Push what `make images` built
	@for image in $(IMAGES); do $(or $(ENGINE),docker) push $(REPOSITORY)/$$image:$(TAG) || exit 1; done

clean: ## Remove what was made, but not the state in .torpor
	@rm -rf $(VENV) .site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: help demo demo-tools demo-rag up test install format lint docs reference types test-unit test-faults test-properties test-failovers test-turns test-calls test-mcp soak mutate test-gpu check clean \
  wheel sbom bench bench-peers manifests manifests-lint images-lint images images-push test-containers
