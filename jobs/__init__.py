"""Verbs: one entry point per file; each parses its arguments, calls one function of `medley` and prints the result."""
