"""Answers from a bundle: in Python (recommender), over HTTP (api, client), on a Ray cluster (deployments)."""
