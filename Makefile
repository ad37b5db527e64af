# The commands that everything is done with: `make` lists them.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
VENV := .venv
BIN := $(VENV)/bin
# What the project needs from the distribution; BCC comes only from there.
APT := python3-venv python3-bpfcc iproute2 nftables iptables bind9-dnsutils dnsmasq-base curl clang-format gcc libc6-dev openssl
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help image test-image release checksums publish setup test test-kernels unit lint format lock generate demo bench cluster e2e e2e-kind clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Install what is missing: distribution packages (needs root), Python packages into .venv

$(READY): requirements-dev.lock pyproject.toml
	@missing=$$(dpkg-query -W -f '$${Package} $${Status}\n' $(APT) 2>/dev/null | awk '/ install ok installed$$/ {print $$1}'); \
	  for p in $(APT); do echo "$$missing" | grep -qx $$p || need="$$need $$p"; done; \
	  if [ -n "$$need" ]; then echo "installing:$$need"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends $$need >/dev/null; fi
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing Python packages into $(VENV)"
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

MODE := sockets
demo: setup ## Show redirects of real connections here, in network namespaces (root; removes itself); MODE=tc and others
	$(BIN)/python -m demo --mode $(MODE)

cluster: setup ## Start a real Kubernetes API server on loopback with the project's kinds, until Ctrl-C (built once: minutes)
	$(BIN)/python -m tests.cluster

bench: setup ## Measure what redirecting costs, in network namespaces (root; minutes; removes itself)
	$(BIN)/python -m benchmarks

test: setup ## Run every test (root: real eBPF in network namespaces of its own)
	$(BIN)/pytest

test-kernels: setup ## Run the programs on Debian's kernels, old and new, under emulation (root; downloads once; 15 minutes)
	$(BIN)/python -m tests.kernels

image: setup ## Build the images into build/images; IMAGE_TOOL=docker|podman|buildah, IMAGE_PREFIX=registry.example.com/team
	$(BIN)/python -m deploy.image

test-image: image ## Test the images: their size, what is in them, and that the agent redirects as it is there (root)
	$(BIN)/pytest tests/image

release: setup ## Build what a release publishes into dist/: wheel, source, chart, images, checksums
	$(BIN)/python -m deploy.release

checksums: setup ## Write dist/SHA256SUMS anew, after archives of other architectures were put there
	$(BIN)/python -m deploy.release checksums

publish: setup ## Push the images that dist/ has archives of to IMAGE_PREFIX=registry.example.com/team
	$(BIN)/python -m deploy.release publish

# What a node is made of and is not built: the container runtime, and pods' network.
E2E_APT := containerd runc containernetworking-plugins conntrack
e2e: setup image ## Bring up a real one-node cluster in namespaces, walk through it all, take it down (root)
	@dpkg -s $(E2E_APT) >/dev/null 2>&1 || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	  apt-get install -y -qq --no-install-recommends $(E2E_APT) >/dev/null; }
	$(BIN)/python -m tests.e2e $(E2E)

e2e-kind: setup image ## The same on a kind cluster (needs Docker and kind)
	$(BIN)/python -m tests.e2e.kind

unit: setup ## Run the tests that need neither root nor an API server
	$(BIN)/pytest -m "not privileged and not cluster"

C_SOURCES := $(wildcard bpf/*.[ch] benchmarks/*.c benchmarks/*/*.c tests/*/*.c tests/*/*/*.c)
lint: setup ## Check style, types, the import contract, generated files and the C format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	clang-format --dry-run --Werror $(C_SOURCES)

format: setup ## Rewrite sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	clang-format -i $(C_SOURCES)

generate: setup ## Write deploy/crds anew from the models in api/
	$(BIN)/python -m lrp_operator.api.schema

lock: ## Pin the dependencies anew (after a change in pyproject.toml)
	$(BIN)/uv pip compile -q pyproject.toml --group dev --generate-hashes --no-emit-index-url --universal \
	  --python-version 3.11 --custom-compile-command 'make lock' -o requirements-dev.lock
	$(BIN)/uv pip compile -q pyproject.toml --generate-hashes --no-emit-index-url --universal -c requirements-dev.lock \
	  --python-version 3.11 --custom-compile-command 'make lock' -o requirements.lock

clean: ## Remove what was built here
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
