"""The engine's own GPU operations, one folder an op: reference, fast kernel, public API."""
