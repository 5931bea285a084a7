# Weir: `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TOOLS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/weir/tools
BPF_LINKER_VERSION := 0.13.0
NEXTEST_VERSION := 0.9.143
export PATH := $(TOOLS)/bin:$(HOME)/.cargo/bin:$(PATH)

# Debian 12 packages, by what they serve.
PKG_BUILD := gcc make pkg-config protobuf-compiler
PKG_EBPF  := rustc-web libstd-rust-web-dev-bpf rust-web-llvm llvm-22-dev libpolly-22-dev
PKG_LAB   := iproute2 ethtool procps openmpi-bin libopenmpi-dev
PKG_TEST  := prometheus prometheus-alertmanager
PACKAGES  := $(PKG_BUILD) $(PKG_EBPF) $(PKG_LAB) $(PKG_TEST)

.PHONY: help
help: ## This list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install what is missing: Debian packages, bpf-linker, cargo-nextest (needs root for the packages)
	@missing=(); for p in $(PACKAGES); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing+=($$p); done; \
	if (( $${#missing[@]} )); then \
	  if (( $$(id -u) )); then echo "missing packages: $${missing[*]}"; echo "run as root: apt-get install --no-install-recommends $${missing[*]}"; exit 1; fi; \
	  echo "installing $${missing[*]}"; \
	  apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null; \
	fi
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.95 or later with rustup (https://rustup.rs)"; exit 1; }
	@command -v bpf-linker >/dev/null || { echo "building bpf-linker $(BPF_LINKER_VERSION) (about two minutes, once)"; \
	  LLVM_PREFIX=/usr/lib/llvm-22 LLVM_SYS_221_PREFIX=/usr/lib/llvm-22 PATH=/usr/lib/llvm-22/bin:$$PATH \
	  cargo install -q bpf-linker --version $(BPF_LINKER_VERSION) --locked --no-default-features --features llvm-22 --root $(TOOLS); }

.PHONY: setup-test
setup-test: setup
	@command -v cargo-nextest >/dev/null || { echo "building cargo-nextest $(NEXTEST_VERSION) (a few minutes, once)"; \
	  cargo install -q cargo-nextest --version $(NEXTEST_VERSION) --locked --root $(TOOLS); }

.PHONY: build
build: setup ## Build everything, release
	cargo build --release --locked

.PHONY: demo
demo: build ## Run the main job on a fabric of namespaces, before and after (root; KEEP=1 leaves it running)
	target/release/weir-lab demo $(if $(KEEP),--keep)

.PHONY: test
test: setup-test ## Run every test (as root also those on the fabric)
	cargo build --release --locked
	cargo nextest run --locked --workspace

.PHONY: lint
lint: setup ## Format, clippy
	cargo fmt --check
	cd ebpf && cargo fmt --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

.PHONY: bench
bench: build ## Measure cost; prints figures, writes target/bench.json
	target/release/weir-lab bench

.PHONY: docs
docs: ## Generate docs/metrics.md from the catalogues
	cargo run -q --release -p weir-lab -- metrics-doc > docs/metrics.md

.PHONY: ci
ci: lint test ## What CI runs
