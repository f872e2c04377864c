# `make demo` shows what Muster does; `make test` checks that it does it. Both install what is
# missing and say so.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Building needs no database: the SQL is checked against the descriptions in crates/storage/.sqlx.
export SQLX_OFFLINE := true

.PHONY: help setup setup-test build demo test faults lint deny advisories fmt prepare clean

help: ## What there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing: a C compiler, Postgres, curl
	@scripts/setup

setup-test: setup
	@scripts/setup test

build: setup ## Build the muster command: target/release/muster
	cargo build --release --locked --package muster-cli

demo: build ## Show the main job on a made-up shop, from an empty machine to an audience
	@examples/demo target/release/muster

test: setup-test lint deny ## Everything that must hold: formatting, lints, dependencies, layering, unit, database, end to end
	cargo test --locked --workspace

# make puts ROUNDS, SEED and CASE (parts of names, with commas) into the environment of the suite.
faults: setup-test build ## Break it on purpose: make faults ROUNDS=200 SEED=7 CASE=commit,revoked
	cargo test --release --locked --package muster-tests --test faults

lint: setup ## Formatting and lints
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- --deny warnings

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
