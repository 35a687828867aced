# Thin: every line is a command that can be run by hand. `make` alone lists the targets.
CARGO      ?= cargo
PYTHON     ?= python3.11
NPM        ?= npm
PREFIX     ?= /usr/local
LIBDIR     ?= $(PREFIX)/lib
TARGET     := $(abspath $(or $(CARGO_TARGET_DIR),target))
DIST       := $(TARGET)/dist
VENV       := .venv
BIN        := $(VENV)/bin
PHASE      := tests/phase
# One profile and one selection of packages, so that tests, benchmarks and shipped libraries share what they compile.
WORKSPACE  := --release --locked --workspace
ONE        := --release --locked -p offloop-tests
HEADER     := $(CARGO) run --quiet --locked --manifest-path tests/header/Cargo.toml --
HOST       := $(shell rustc -vV | sed -n 's/host: //p')
NODE_READY   := bindings-node/node_modules/.package-lock.json
DEMO_READY   := tests/demo/node_modules/.package-lock.json
BENCH_READY  := tests/bench/node_modules/.package-lock.json
EXAMPLES_READY := examples/node_modules/.package-lock.json
export CARGO_TARGET_DIR := $(TARGET)

.DEFAULT_GOAL := list
.DELETE_ON_ERROR:
.PHONY: list build demo examples test check bench torture node-versions dist-check fmt lint bless dist install clean loom asan asan-all fuzz core node python capi c-programs c-bench bench-peers

list:  ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

# ---- tools of the hosts, from the project's own lock files ----

$(BIN)/.ready: bindings-python/requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

$(NODE_READY): bindings-node/package-lock.json
	cd bindings-node && $(NPM) ci --silent --ignore-scripts
	touch $@

$(DEMO_READY): tests/demo/package-lock.json tests/demo/requirements.txt $(BIN)/.ready
	cd tests/demo && $(NPM) ci --silent
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/demo/requirements.txt
	touch $@

$(BENCH_READY): tests/bench/package-lock.json tests/bench/requirements.txt $(BIN)/.ready
	cd tests/bench && $(NPM) ci --silent
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/bench/requirements.txt
	touch $@

$(EXAMPLES_READY): examples/package-lock.json examples/requirements.txt $(BIN)/.ready
	cd examples && $(NPM) ci --silent --ignore-scripts
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r examples/requirements.txt
	touch $@

# ---- the library and its faces, in place ----

build: core capi node python  ## the core and its three faces, in place

core:
	$(CARGO) build $(WORKSPACE) --all-targets

# `-z nodelete`: threads of the pool may still run when a host unloads the library.
CAPI_LINK := -C link-arg=-Wl,-soname,liboffloop.so.0 -C link-arg=-Wl,-z,nodelete

capi:
	$(CARGO) rustc --release --locked -p offloop --features capi --lib --crate-type cdylib,staticlib -- $(CAPI_LINK)

node: core
	cd bindings-node && node build.mjs --built

python: core $(BIN)/.ready
	install -m 755 $(TARGET)/release/lib_native.so bindings-python/python/offloop/_native.abi3.so
	install -D -m 755 $(TARGET)/release/offloop bindings-python/python/offloop/_bin/offloop
	echo $(CURDIR)/bindings-python/python > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/offloop-dev.pth

install: capi  ## the C library, its header and pkg-config file, below PREFIX (and DESTDIR)
	install -d $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(LIBDIR)/pkgconfig
	install -m 644 include/offloop.h $(DESTDIR)$(PREFIX)/include/
	install -m 644 $(TARGET)/release/liboffloop.a $(DESTDIR)$(LIBDIR)/
	install -m 755 $(TARGET)/release/liboffloop.so $(DESTDIR)$(LIBDIR)/liboffloop.so.0
	strip --strip-debug $(DESTDIR)$(LIBDIR)/liboffloop.so.0 $(DESTDIR)$(LIBDIR)/liboffloop.a
	ln -sf liboffloop.so.0 $(DESTDIR)$(LIBDIR)/liboffloop.so
	sed 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(LIBDIR)|' include/offloop.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/offloop.pc

# What people install, packed: npm packages, wheel and sdist, a prefix.
dist: $(BIN)/.ready $(NODE_READY) capi node
	mkdir -p $(DIST)/npm $(DIST)/wheels
	cd bindings-node && $(NPM) pack --silent --pack-destination $(DIST)/npm
	cd bindings-node && node scripts/pack-platform.mjs $(DIST)/npm
	install -D -m 755 $(TARGET)/release/offloop bindings-python/python/offloop/_bin/offloop
	strip --strip-unneeded bindings-python/python/offloop/_bin/offloop
	cd bindings-python && ../$(BIN)/maturin sdist -o $(DIST)/wheels
	cd bindings-python && ../$(BIN)/maturin build --release --locked --quiet -o $(DIST)/wheels
	$(MAKE) --no-print-directory install PREFIX=$(DIST)/c

dist-check: dist  ## the sdist builds outside of the repository; minutes, because it compiles everything anew
	$(BIN)/python tests/wheel.py --sdist

# C programs of the suite, against the installed prefix, as a user compiles them.
C_FLAGS := -O2 -Wall -Wextra -Werror
C_OFFLOOP = $$(PKG_CONFIG_PATH=$(DIST)/c/lib/pkgconfig pkg-config --cflags --libs offloop) -Wl,-rpath,$(DIST)/c/lib

c-programs:
	$(MAKE) --no-print-directory install PREFIX=$(DIST)/c
	mkdir -p $(TARGET)/conformance $(TARGET)/demo $(TARGET)/bench
	$(CC) -std=gnu11 $(C_FLAGS) -o $(TARGET)/conformance/driver-c $(wildcard tests/drivers/c/*.c) $(C_OFFLOOP) -lpthread
	$(CC) -std=gnu11 $(C_FLAGS) -o $(TARGET)/conformance/pair-worker-c tests/pairs/worker.c $(C_OFFLOOP) -lpthread
	$(CC) -std=gnu11 $(C_FLAGS) -o $(TARGET)/conformance/host-c tests/hosts/host.c $(C_OFFLOOP)
	$(CC) -std=gnu11 $(C_FLAGS) -o $(TARGET)/demo/server-c tests/demo/server.c $(C_OFFLOOP)
	$(CC) -std=gnu11 $(C_FLAGS) -o $(TARGET)/demo/own-c tests/demo/own.c $(C_OFFLOOP)

# libuv and Boost are peers of a benchmark each; without its headers a peer is left out, with a line that says so.
BOOST_QUEUE := boost/interprocess/ipc/message_queue.hpp
c-bench: c-programs
	pkg-config --exists libuv || echo "bench: no libuv headers (apt-get install libuv1-dev): its column stays empty"
	$(CC) -std=gnu11 $(C_FLAGS) -o $(TARGET)/bench/pools tests/bench/pools.c $(C_OFFLOOP) $$(pkg-config --exists libuv && echo -DWITH_LIBUV $$(pkg-config --cflags --libs libuv))
	if echo '#include <$(BOOST_QUEUE)>' | $(CXX) -E -x c++ - >/dev/null 2>&1; then \
		$(CXX) -O2 -Wall -Wextra -Werror -o $(TARGET)/bench/boost tests/bench/boost.cpp -lpthread -lrt; \
	else echo "bench: no Boost headers (apt-get install libboost-dev): its column stays empty"; fi

# Peers that are crates, and heavy: nothing but the benchmark compiles them.
bench-peers:
	$(CARGO) build --release --locked --manifest-path tests/bench/peers/Cargo.toml

# ---- what people run ----

demo: capi node python c-programs $(DEMO_READY)  ## real servers under load, inline against offloaded: a table and a plot
	$(CARGO) run $(ONE) --quiet --bin demo

examples: node python c-programs $(EXAMPLES_READY)  ## the examples of several processes, as their README prints them; EXAMPLES='rows words' for some
	$(BIN)/python tests/examples.py $(EXAMPLES)

test: build c-programs $(BIN)/.ready $(NODE_READY) $(EXAMPLES_READY)  ## the whole suite, with the time of each phase
	@$(PHASE) format        $(CARGO) fmt --all --check
	@$(PHASE) rust          env OFFLOOP_REQUIRE=rust,c,node,python $(CARGO) test $(WORKSPACE)
	@$(PHASE) failpoints    $(CARGO) test --release --locked -p offloop --no-default-features --features failpoints --test ring --test channel
	@$(PHASE) header        $(HEADER) --check
	@$(PHASE) c             tests/c/run.sh $(TARGET)/release
	@$(PHASE) ops-types     node bindings-node/scripts/ops-types.mjs
	@$(PHASE) ops-stubs     $(BIN)/python bindings-python/generate.py --check
	@$(PHASE) node          $(NPM) --prefix bindings-node test --silent
	@$(PHASE) python        $(BIN)/python -m pytest -q bindings-python
	@$(PHASE) examples      $(BIN)/python tests/examples.py
	@$(PHASE) page          $(BIN)/python tests/page.py
	@$(PHASE) packages      $(MAKE) --no-print-directory dist
	@$(PHASE) wheel         $(BIN)/python tests/wheel.py
	@$(PHASE) quick-starts  $(BIN)/python tests/quickstarts.py --require
	@$(PHASE) --summary

check:  ## the repository's own rules: layers, generated files, parity, words
	$(CARGO) test $(ONE) --test checks

bench: capi node python c-bench bench-peers $(DEMO_READY) $(BENCH_READY)  ## ours and the peers in one run, as ratios of medians; BENCH='node python' for some
	$(CARGO) run $(ONE) --quiet --bin bench -- $(BENCH)

torture: build c-programs $(BIN)/.ready $(NODE_READY)  ## the long runs: seeded storms, 10^7 completion rounds, 10^8 records per history, 10^4 deaths, 5,000 workers killed under three hosts
	OFFLOOP_TORTURE=1 OFFLOOP_REQUIRE=rust,c,node,python $(CARGO) test $(WORKSPACE) -- --include-ignored --nocapture
	OFFLOOP_TORTURE=1 $(CARGO) test --release --locked -p offloop --no-default-features --features failpoints --test ring --test channel

NODES ?= 22 24
node-versions: node  ## the Node suite on other releases of Node (NODES='22 24')
	set -e; for version in $(NODES); do \
		npx --yes --package=node@$$version -- node --version; \
		npx --yes --package=node@$$version -- $(NPM) --prefix bindings-node test --silent; \
	done

loom:  ## every interleaving of the lock-free stack, of waking and of the ring's lanes, and mutants that must fail
	RUSTFLAGS='--cfg loom' CARGO_TARGET_DIR=$(TARGET)/loom $(CARGO) test --release --locked --no-default-features -p offloop --lib models

ASAN_FEATURES := --no-default-features --features hash,failpoints
asan:  ## the C ABI suite and its failpoints under AddressSanitizer
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=$(TARGET)/asan $(CARGO) rustc --release --locked -p offloop \
		$(ASAN_FEATURES) --lib --crate-type staticlib --target $(HOST)
	tests/c/run.sh --asan $(TARGET)/asan/$(HOST)/release/liboffloop.a

asan-all:  ## the same with every op family and hostile input for each: minutes to build
	$(MAKE) --no-print-directory asan ASAN_FEATURES='--features failpoints'

# What cargo-fuzz would do, with the compiler that everything else is built with.
FUZZ_FLAGS := --cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module -Ccodegen-units=1 -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
FUZZ       := codec
SECONDS    := 60

fuzz:  ## libFuzzer on a target (FUZZ=codec, channel or ring) for so long (SECONDS=60), beginning with the vectors
	$(CARGO) run --quiet --release --locked --manifest-path fuzz/Cargo.toml --bin corpus -- $(FUZZ) $(TARGET)/fuzz-corpus/$(FUZZ)
	RUSTC_BOOTSTRAP=1 RUSTFLAGS='$(FUZZ_FLAGS)' CARGO_TARGET_DIR=$(TARGET)/fuzz $(CARGO) build --release --locked --manifest-path fuzz/Cargo.toml \
		--bin $(FUZZ) --target $(HOST)
	$(TARGET)/fuzz/$(HOST)/release/$(FUZZ) -max_total_time=$(SECONDS) -max_len=16384 -rss_limit_mb=2048 -timeout=20 -print_final_stats=1 $(TARGET)/fuzz-corpus/$(FUZZ)

fmt:  ## rewrite sources in the house style
	$(CARGO) fmt --all
	$(BIN)/ruff format bindings-python tests

lint: $(BIN)/.ready $(NODE_READY)  ## every linter, the slow ones too
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(WORKSPACE) --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --release --locked --no-deps -p offloop
	$(NPM) --prefix bindings-node run lint --silent
	cd bindings-python && ../$(BIN)/ruff check . && ../$(BIN)/ruff format --check . && ../$(BIN)/mypy
	tests/lint-deps

bless: node python  ## rewrite every generated file
	OFFLOOP_BLESS=1 $(CARGO) test $(ONE) --test checks -- generated
	$(HEADER)
	node bindings-node/scripts/ops-types.mjs --write
	$(BIN)/python bindings-python/generate.py

clean:  ## remove what was built and installed here
	rm -rf $(TARGET) $(VENV) bindings-node/node_modules tests/demo/node_modules tests/bench/node_modules examples/node_modules
	rm -f bindings-node/*.node bindings-python/python/offloop/_native.abi3.so
