# Thin: every line is a command that can be run by hand.
CARGO = cargo
.PHONY: test
test:
	$(CARGO) test --release --locked -p offloop

# ---- the C face: cargo-c's layout, without cargo-c ----

PREFIX   ?= /usr/local
LIBDIR   ?= $(PREFIX)/lib
TARGET   ?= $(abspath $(or $(CARGO_TARGET_DIR),target))
CAPI_LINK = -C link-arg=-Wl,-soname,liboffloop.so.0 -C link-arg=-Wl,-z,nodelete
HEADER    = CARGO_TARGET_DIR=$(TARGET)/header $(CARGO) run --quiet --locked --manifest-path tests/header/Cargo.toml --
.PHONY: capi install header check-header test-c asan

capi:  ## liboffloop.so and liboffloop.a
	$(CARGO) rustc --release --locked -p offloop --features capi --lib --crate-type cdylib,staticlib -- $(CAPI_LINK)

install: capi  ## library, header and offloop.pc into PREFIX (and DESTDIR)
	install -d $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(LIBDIR)/pkgconfig
	install -m 644 include/offloop.h $(DESTDIR)$(PREFIX)/include/
	install -m 644 $(TARGET)/release/liboffloop.a $(DESTDIR)$(LIBDIR)/
	install -m 755 $(TARGET)/release/liboffloop.so $(DESTDIR)$(LIBDIR)/liboffloop.so.0
	strip --strip-debug $(DESTDIR)$(LIBDIR)/liboffloop.so.0 $(DESTDIR)$(LIBDIR)/liboffloop.a
	ln -sf liboffloop.so.0 $(DESTDIR)$(LIBDIR)/liboffloop.so
	sed 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(LIBDIR)|' include/offloop.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/offloop.pc

header:  ## rewrite include/offloop.h (part of bless)
	$(HEADER)

check-header:
	$(HEADER) --check

test-c: capi check-header
	tests/c/run.sh $(TARGET)/release

asan:  ## the C ABI suite and its failpoints under AddressSanitizer
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=$(TARGET)/asan $(CARGO) rustc --release --locked -p offloop \
		--no-default-features --features hash,failpoints --lib --crate-type staticlib --target $(shell rustc -vV | sed -n 's/host: //p')
	tests/c/run.sh --asan $(TARGET)/asan/$(shell rustc -vV | sed -n 's/host: //p')/release/liboffloop.a
