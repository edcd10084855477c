# Each target works on a fresh machine: it gets what it needs first (scripts/setup.sh), or says what is missing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# rustup's own folder, where a fresh login shell would find cargo.
export PATH := $(PATH):$(HOME)/.cargo/bin
# Where set-up unpacks system tools when it may not install them.
export POSTERN_TOOLS ?= $(CURDIR)/.tools

TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
POSTERN := $(TARGET_DIR)/debug/postern
CARGO ?= cargo
ARGS ?=

.PHONY: help setup build demo test check tidy e2e spire h2spec bench instructions fuzz docs

help: ## List the targets
	@printf 'Postern: a service mesh you can run. Targets:\n\n'
	@grep -hE '^[a-z0-9]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9]+):.*## (.*)/  make \1\t\2/' | expand -t 18
	@printf '\nPass flags on with ARGS, as in: make demo ARGS=--once\n'

setup: ## Get the system tools that are missing (or say what is missed)
	@./scripts/setup.sh

build: setup ## Build the postern binary
	@$(CARGO) build -p postern

demo: build ## A whole mesh on this machine: four workloads, mutual TLS, policy, a refused call and its reason
	@$(POSTERN) demo manifests/examples/payments $(ARGS)

test: setup ## Every test that needs no cluster (network namespaces included, where they are allowed)
	@$(CARGO) test --workspace $(ARGS)

check: ## Formatting, lints, dependency rules, tidy rules
	@$(CARGO) fmt --check
	@$(CARGO) clippy --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny check bans licenses sources; else \
	  echo 'check: cargo-deny is not installed, so the dependency rules were not checked: cargo install cargo-deny --locked'; fi
	@$(CARGO) test -p postern-tests --test tidy --test docs

e2e: build ## The demo as a test: every step is an assertion on real traffic
	@$(POSTERN) demo manifests/examples/payments --once $(ARGS)

spire: setup ## Build a SPIRE server and agent (Go, some minutes, once) and try a sidecar that takes its identity from them
	@folder="$$(./scripts/spire.sh --build)"; POSTERN_SPIRE="$$folder" POSTERN_SPIRE_REQUIRED=1 \
	  $(CARGO) test -p postern-tests --test spire -- --nocapture

h2spec: setup ## Build h2spec, the conformance test of HTTP/2 (Go, seconds, once), and try a sidecar with it
	@program="$$(./scripts/h2spec.sh --build)"; POSTERN_H2SPEC="$$program" POSTERN_H2SPEC_REQUIRED=1 \
	  $(CARGO) test -p postern-tests --test h2spec -- --nocapture

bench: ## Benches, judged against benches/budgets.toml: all of them run, and it fails when one broke a promise
	@$(CARGO) build --release -q -p postern-benches
	@$(CARGO) build --profile dist -q -p postern-proxy
	@status=0; for bench in "decisions $(ARGS)" envoy_rbac issuance handshakes fleet pair "pair --evidence"; do \
	  printf '\n== %s\n' "$$bench"; $(TARGET_DIR)/release/$$bench || status=1; done; exit $$status

instructions: ## Count the instructions of what each request passes through (valgrind), and hold them to benches/budgets.toml
	@$(CARGO) build --release -q -p postern-benches --bin hot
	@$(TARGET_DIR)/release/hot

fuzz: ## Fuzz each target for a minute (needs nightly Rust and cargo-fuzz)
	@command -v cargo-fuzz >/dev/null || { echo 'fuzz: cargo-fuzz is missing: cargo install cargo-fuzz --locked' >&2; exit 1; }
	@rustup run nightly rustc -V >/dev/null 2>&1 || { echo 'fuzz: nightly Rust is missing: rustup toolchain install nightly' >&2; exit 1; }
	@for target in $$(cd fuzz && cargo +nightly fuzz list); do \
	  echo "fuzz: $$target"; (cd fuzz && cargo +nightly fuzz run "$$target" -- -max_total_time=60 -max_len=65536); done

docs: ## API documentation of our own crates
	@$(CARGO) doc --workspace --no-deps
	@echo "docs: $(TARGET_DIR)/doc/postern_proxy/index.html"
