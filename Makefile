# Thin: every line is a command that can be run by hand.
CARGO = cargo
.PHONY: test
test:
	$(CARGO) test --release --locked -p offloop
