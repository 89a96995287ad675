"""Hyperparameter search: its entry point and the spaces."""
