//! The four faces have the same concepts. `tests/parity.toml` is the table; this check holds it to the public names.
