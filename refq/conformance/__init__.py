"""Conformance: devices under test, verdicts, and failures explained."""
