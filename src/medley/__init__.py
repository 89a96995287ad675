"""Medley trains multimodal recommenders on a Ray cluster and serves the best one."""
