"""Loads for a real server, over HTTP: a `lens serve` of its own, and clients that do not wait for it."""
