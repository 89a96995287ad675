"""Verbs of serving: `serve run serve.app:app bundle=PATH` and the Serve configuration files."""
