# firstsight. `make help` is the contents page; set-up is part of each target, once.

##@ Run

KFP_ENDPOINT ?=## address of a Kubeflow Pipelines server: pipeline-run submits the run there, streams its logs and waits for it to end
REQUEST ?=## YAML file of the parameters below, or its URI: an experiment as a file; other arguments override it
override KFP_ENDPOINT := $(value KFP_ENDPOINT)
include scripts/request.mk
ARGS ?=## further arguments for the command that a target runs: ARGS=-v also shows what the steps print

# Tools; each can be another one.
PYTHON ?=
UV_VERSION ?= 0.13.9
VENV ?= .venv
BIN := $(VENV)/bin
SITE := $(VENV)-docs# the environment of make docs
LIGHT := $(if $(wildcard $(VENV)/ready),$(VENV),$(VENV)-light)# what only asks a cluster needs no torch
SCAN := $(VENV)-scan# and of make chart-scan

export KFP_ENDPOINT PYTHON UV_VERSION
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

.PHONY: help
help: ## this page
	@scripts/help.sh $(firstword $(MAKEFILE_LIST))

.PHONY: pipeline-run
pipeline-run: $(VENV)/ready ## the whole experiment: data, both stages of every arm, evaluation, report
	@$(BIN)/python -m pipelines $(if $(KFP_ENDPOINT),submit,run) $(REQUEST_FLAGS) $(ARGS)

.PHONY: pipeline-plan
pipeline-plan: $(VENV)/ready ## what pipeline-run would do with these arguments, and how much of it is already done
	@$(BIN)/python -m pipelines plan $(REQUEST_FLAGS) $(ARGS)

.PHONY: pipeline-verify
pipeline-verify: $(VENV)/ready ## hash every sealed byte of that experiment and its data; report differences from the seals
	@$(BIN)/python -m pipelines verify $(REQUEST_FLAGS) $(ARGS)

##@ Test

WORKERS ?= 3## test files that run at the same time; best one more than cores, since tests wait half of the time
# By number of tests the longest would come last. For a few tests by name, workers would only collect everything once each.
side_by_side = $(if $(filter -k%,$(ARGS)),,-n $(WORKERS) --dist loadfile --no-loadscope-reorder)

.PHONY: test
test: $(VENV)/tools ## unit and process tests; no root, no Go, no network
	$(BIN)/python -m pytest -q $(side_by_side) $(ARGS)

.PHONY: slow
slow: $(VENV)/tools ## kill campaigns and other long tests
	$(BIN)/python -m pytest -q $(side_by_side) -m "slow and not campaign and not gpu and not cluster" $(ARGS)

.PHONY: states-campaign
states-campaign: $(VENV)/tools ## damage each object of a real experiment in each state, alone and in pairs (ARGS="--store minio"; an hour)
	$(BIN)/python -m tests.faults.states_campaign $(ARGS)

SEED ?= 0## seed of faults and faults-soak
STORE ?= file## store of faults and faults-soak: file, seaweedfs or minio
HOURS ?= 8## duration of faults-soak

.PHONY: faults faults-soak
faults: $(VENV)/tools ## whole experiments under several faults at once, for MINUTES; a record in build/faults says where to continue (ARGS="--trial 17")
	@mkdir -p build/faults
	$(BIN)/python -m tests.faults --seed $(SEED) --store $(STORE) --minutes $(MINUTES) --record build/faults/$(STORE)-$(SEED).record $(ARGS)
faults-soak: ## the same for HOURS
	@$(MAKE) faults MINUTES=$$(($(HOURS) * 60))

.PHONY: campaigns
campaigns: $(VENV)/tools ## exhaustive fault tests, of which test and slow run a sample (ARGS=tests/storage; an hour)
	$(BIN)/python -m pytest -q $(side_by_side) -m campaign $(ARGS)

MINUTES ?= 10## duration of faults, and of each target of fuzz

.PHONY: fuzz
fuzz: $(VENV)/tools ## coverage-guided fuzzing of each reader of untrusted input (atheris, fetched at first use); ARGS="--target zip --seed 1"
	@test -d build/fuzz/lib/atheris || $(BIN)/uv pip install -q --target build/fuzz/lib --require-hashes -r tests/fuzz/requirements.txt || true
	PYTHONPATH=build/fuzz/lib $(BIN)/python -m tests.fuzz --minutes $(MINUTES) $(ARGS)

.PHONY: test-gpu
test-gpu: $(VENV)/tools ## tests that need a CUDA device
	$(BIN)/python -m pytest -q -m gpu $(ARGS)

.PHONY: check
check: $(VENV)/tools ## style, types, import contracts, house rules, generated files
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/house_rules.py
	$(MAKE) generate && git diff --exit-code -- pipelines README.md NOTICE docs charts scripts trainer/configs

.PHONY: ci
ci: ## everything that must pass before a change is accepted
	$(MAKE) check
	$(MAKE) test
	$(MAKE) slow
	$(MAKE) e2e

##@ Cluster (Debian, root)

.PHONY: cluster-up cluster-down cluster-status
cluster-up: $(VENV)/tools ## a real single-node Kubernetes, training operator, Prometheus, MinIO; built at first use (Go)
cluster-down: $(VENV)/tools ## stop it and leave nothing but the built servers
cluster-status: $(VENV)/tools ## which of its processes are running
cluster-up cluster-down cluster-status: cluster-%:
	@$(BIN)/python -m tests.cluster $*

.PHONY: e2e e2e-tests
e2e: $(VENV)/tools ## jobs, reaper, chart and images on a real cluster: KUBECONFIG's, or one brought up here
	@$(BIN)/python -m tests.cluster with $(MAKE) e2e-tests

e2e-tests: $(VENV)/tools
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "cluster and not trainjob and not kueue and not alone" tests/cluster $(ARGS)
	$(BIN)/python -m pytest -q -m "alone and not trainjob" tests/cluster $(ARGS)

.PHONY: e2e-kueue
e2e-kueue: $(VENV)/tools ## Kueue queues: throttled cells, and queues that are missing, stopped or too small (one scenario is in e2e)
	@$(BIN)/python -m tests.cluster with $(BIN)/python -m pytest -q -m kueue tests/cluster $(ARGS)

.PHONY: e2e-trainjob
e2e-trainjob: $(VENV)/tools ## TrainJobs on the real controllers of Kubeflow Trainer 2.0 and 2.3 and JobSet (built at first use)
	@$(BIN)/python -m tests.cluster with $(BIN)/python -m pytest -q -m trainjob tests/cluster $(ARGS)

##@ Chart

VALUES ?=## values file of the chart
NAMESPACE ?= firstsight## namespace that the chart is or will be installed in
RELEASE ?= firstsight## for chart-preflight: name of the release in that namespace
HELM ?=## Helm 3 or 4 (default: helm of PATH, else one that is fetched)
CUDA ?=## for chart-preflight: CUDA version of the trainer image, such as 12.6, if it is not the pinned one
CHART := charts/firstsight
program = "$$($(BIN)/python -m tests.cluster program $(1))"# built (Go) or fetched at first use

.PHONY: chart-preflight
chart-preflight: $(LIGHT)/ready ## what the cluster of your kubeconfig lacks for the chart with VALUES; changes nothing, needs no torch
	@scripts/chart_preflight.sh "$(HELM)" $(LIGHT)/bin/python $(CHART) "$(NAMESPACE)" "$(VALUES)" "$(CUDA)" "$(RELEASE)"

.PHONY: chart-lint
chart-lint: $(VENV)/tools ## helm lint, and a unit test for every switch
	$(call program,helm) lint --strict --values $(CHART)/tests/values.yaml $(CHART)
	$(call program,helm-unittest) --strict --values $(abspath $(CHART)/tests/values.yaml) $(CHART)

.PHONY: chart-test
chart-test: $(VENV)/tools ## chart-lint with Helm 3 and 4, schemas, Pod Security, goldens, alerts and dashboard on real series
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/chart $(ARGS)

.PHONY: chart-scan
chart-scan: $(VENV)/tools $(SCAN)/scan ## checkov and kube-score: each finding has its reason in docs/SECURITY.md, or this fails
	$(BIN)/python scripts/chart_scan.py $(SCAN)/bin/checkov

.PHONY: chart-docs
chart-docs: $(VENV)/tools ## the chart's README from values.yaml
	$(call program,helm-docs) --chart-search-root $(CHART)

.PHONY: e2e-kfp
e2e-kfp: $(VENV)/tools ## test runs on the Kubeflow at KFP_ENDPOINT, where the chart must be installed, or without it on a stand-in; prints a table
	$(BIN)/python -m tests.kubeflow $(ARGS)

.PHONY: kind-up kind-down
kind-up: images ## with docker and kind: a cluster with Kubeflow, the operators, the images
	manifests/kind-up.sh "$(REGISTRY)" "$(image_tag)" build/images
kind-down: ## delete that cluster
	kind delete cluster --name "$${KIND_CLUSTER:-firstsight}"

##@ Images

IMAGES ?= trainer pipelines minio## which of the three images to build
PUSH ?=## 1: push them, and write the digests that the registry gave them into build/images/values.yaml
REGISTRY ?= docker.io/firstsight## images are $REGISTRY/<image>:$TAG; the chart's images.registry
TAG ?=## default: the version of a tagged commit, otherwise the version with the commit (make version); the chart's images.tag
image_tag = $(or $(TAG),$(shell images/tag.sh))

.PHONY: images
images: $(VENV)/ready ## build the images with docker, podman or buildah; write SBOMs and values for the chart; mirrors and base images: see images/build.sh
	REGISTRY="$(REGISTRY)" TAG="$(image_tag)" UV="$(BIN)/uv" PUSH="$(PUSH)" \
	SOURCE_DATE_EPOCH="$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null)}" images/build.sh $(IMAGES)

##@ Measure

.PHONY: bench
bench: $(VENV)/tools ## compare, side by side, with what a user would otherwise use; writes docs/BENCHMARKS.md
	$(BIN)/python -m tests.benchmarks $(ARGS)

.PHONY: bench-gpu
bench-gpu: $(VENV)/tools ## the rows that need a GPU
	$(BIN)/python -m tests.benchmarks --gpu $(ARGS)

##@ Develop

.PHONY: setup
setup: $(VENV)/ready ## the environment for runs only; targets that need more install it

.PHONY: format
format: $(VENV)/tools ## apply ruff's fixes and its formatting to the source
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

.PHONY: generate
generate: $(VENV)/tools ## write the generated files: the compiled pipeline, tables, make's arguments, parts of the chart
	$(BIN)/python -m pipelines compile pipelines/kubeflow/compiled/firstsight.yaml
	set -e; for name in recipe_table open_clip_table registry_files request_files placement_schema values_tree states_table notice \
	    scale_table tested_table dashboard pods_table; do $(BIN)/python scripts/$$name.py; done
	$(BIN)/python scripts/chart_scan.py --table
	$(MAKE) chart-docs

.PHONY: docs
docs: $(VENV)/ready $(SITE)/site ## the site in build/site: every page of docs/, and a reference generated from the code; links and anchors checked
	$(BIN)/python scripts/site_pages.py build/reference
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --quiet --strict

.PHONY: update
update: $(VENV)/ready ## update every Python and Go pin to the newest version that fits, then the notices; run `make ci` afterwards
	scripts/lock.sh $(BIN)/uv --upgrade
	@for folder in tests/cluster/tools/*/; do echo "update: $$folder"; (cd "$$folder" && go get -u tool && go mod tidy) || exit 1; done
	@echo "update: Dockerfiles and workflows name their bases and actions; .github/dependabot.yml asks for those"

.PHONY: version
version: ## of the project, its images and its chart
	@$(if $(TAG),echo $(TAG),images/tag.sh)

.PHONY: lock
lock: $(VENV)/ready ## resolve pyproject.toml's groups into hashed requirements
	scripts/lock.sh $(BIN)/uv

.PHONY: hooks
hooks: $(VENV)/tools ## run the checks at every commit
	$(BIN)/pre-commit install

.PHONY: clean
clean: ## remove the environments and caches; runs/ stays
	rm -rf .venv* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What runs need, and what tests need beside that.
$(VENV)/ready: requirements/run.txt
	@scripts/setup.sh $(VENV) $< ready
$(VENV)/tools: requirements/dev.txt $(VENV)/ready
	@scripts/setup.sh $(VENV) $< tools
$(VENV)-light/ready: requirements/pipelines.txt
	@scripts/setup.sh $(VENV)-light $< light && touch $@
$(SITE)/site: requirements/docs.txt
	@scripts/setup.sh $(SITE) $< site
$(SCAN)/scan: requirements/scan.txt
	@scripts/setup.sh $(SCAN) $< scan
