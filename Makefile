# `make demo` shows what Muster does; `make test` checks that it does it. Both install what is
# missing and say so.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Building needs no database: the SQL is checked against the descriptions in crates/storage/.sqlx.
export SQLX_OFFLINE := true

# How large a directory and a cohort `make bench` measures.
USERS ?= 5000000
IDS ?= 1000000

.PHONY: help setup setup-test build demo test faults bench bench-growth lint fuzz deny advisories fmt prepare clean

help: ## What there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing: a C compiler, Postgres, curl
	@scripts/setup

setup-test: setup
	@scripts/setup test

build: setup ## Build the muster command: target/release/muster
	cargo build --release --locked --package muster-cli

demo: build ## Show the main job on a made-up shop, from an empty machine to an audience
	@examples/demo target/release/muster

test: setup-test lint deny ## Everything that must hold: formatting, lints, dependencies, layering, unit, database, end to end
	ROUNDS=$${ROUNDS:-12} cargo test --locked --workspace

# make puts ROUNDS, SEED and CASE (parts of names, with commas) into the environment of the suite.
faults: setup-test build ## Break it on purpose: make faults ROUNDS=200 SEED=7 CASE=commit,revoked
	cargo test --release --locked --package muster-tests --test faults

bench: build ## Measure it on this machine, next to plain Postgres: make bench USERS=1000000 IDS=200000
	cargo run --release --locked --package muster-bench -- --users $(USERS) --ids $(IDS)

bench-growth: build ## Measure ingest and audience as the directory grows to 20 million users
	cargo run --release --locked --package muster-bench -- --ids $(IDS) \
		--growth 1000000,5000000,20000000 --repeats 3 --json target/bench-growth.json

lint: setup ## Formatting and lints
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- --deny warnings

# libFuzzer needs a flag of the nightly compiler; RUSTC_BOOTSTRAP lets the stable one take it.
fuzz: setup-test ## Give hostile bytes to what reads them: make fuzz SECONDS_EACH=600 TARGET=filter_text
	scripts/fuzz $(TARGET)

deny: setup-test ## Licences, sources and duplicates of the dependencies
	cargo deny --locked --workspace check --hide-inclusion-graph licenses bans sources

advisories: setup-test ## Ask the advisory database about the dependencies; needs a network
	cargo deny --locked --workspace check advisories

fmt: ## Format the sources
	cargo fmt --all

prepare: setup ## Describe the SQL anew, after a query or a migration has changed
	scripts/prepare

clean: ## Remove what was built
	cargo clean
