# Thin: every line is a command that can be run by hand. `make` alone lists the targets.
CARGO      ?= cargo
PYTHON     ?= python3.11
NPM        ?= npm
PREFIX     ?= /usr/local
TARGET     := $(abspath $(or $(CARGO_TARGET_DIR),target))
DIST       := $(TARGET)/dist
VENV       := .venv
BIN        := $(VENV)/bin
PHASE      := tests/phase
# One profile and one selection of packages, so that tests, benchmarks and shipped libraries share what they compile.
WORKSPACE  := --release --locked --workspace
NODE_READY   := bindings-node/node_modules/.package-lock.json
DEMO_READY   := tests/demo/node_modules/.package-lock.json
BENCH_READY  := tests/bench/node_modules/.package-lock.json
export CARGO_TARGET_DIR := $(TARGET)

.DEFAULT_GOAL := list
.DELETE_ON_ERROR:
.PHONY: list build demo test check bench torture fmt lint bless dist install clean core node python capi

list:  ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

# ---- tools of the hosts, from the project's own lock files ----

$(BIN)/.ready: tests/requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

$(NODE_READY): bindings-node/package-lock.json
	cd bindings-node && $(NPM) ci --silent
	touch $@

$(DEMO_READY): tests/demo/package-lock.json tests/demo/requirements.txt $(BIN)/.ready
	cd tests/demo && $(NPM) ci --silent
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/demo/requirements.txt
	touch $@

$(BENCH_READY): tests/bench/package-lock.json tests/bench/requirements.txt $(BIN)/.ready
	cd tests/bench && $(NPM) ci --silent
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/bench/requirements.txt
	touch $@

# ---- the library and its faces ----

build: core capi node python  ## the core and its three faces, in place

core:
	$(CARGO) build $(WORKSPACE) --all-targets

# ---- what people run ----

demo: build $(DEMO_READY)  ## real servers under load, inline against offloaded: a table and a plot
	$(CARGO) run --release --locked --quiet -p offloop-tests --bin demo

test: build $(BIN)/.ready $(NODE_READY)  ## the whole suite, with the time of each phase
	@$(PHASE) format        $(CARGO) fmt --all --check
	@$(PHASE) clippy        $(CARGO) clippy $(WORKSPACE) --all-targets -- -D warnings
	@$(PHASE) rust          $(CARGO) test $(WORKSPACE)
	@$(PHASE) docs          env RUSTDOCFLAGS='-D warnings' $(CARGO) doc --release --locked --no-deps -p offloop
	@$(PHASE) --summary

check:  ## the repository's own rules: layers, generated files, parity, words
	$(CARGO) test --release --locked -p offloop-tests --test checks

bench: build $(BENCH_READY)  ## ours and the peers in one run, as ratios of medians
	$(CARGO) run --release --locked --quiet -p offloop-tests --bin bench -- $(BENCH)

torture: build  ## the long runs: seeded storms, 10^7 completion rounds, model checking
	OFFLOOP_TORTURE=1 $(CARGO) test $(WORKSPACE) -- --include-ignored --nocapture

fmt:  ## rewrite sources in the house style
	$(CARGO) fmt --all

lint: $(BIN)/.ready $(NODE_READY)  ## every linter, the slow ones too
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(WORKSPACE) --all-targets -- -D warnings
	tests/lint-deps

bless:  ## rewrite every generated file
	OFFLOOP_BLESS=1 $(CARGO) test --release --locked -p offloop-tests --test checks -- generated

clean:  ## remove what was built and installed here
	rm -rf $(TARGET) $(VENV) bindings-node/node_modules tests/demo/node_modules tests/bench/node_modules
