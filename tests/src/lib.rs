//! Cross-language conformance and repository checks.
