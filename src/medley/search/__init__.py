"""The best configuration: a short base run, then many light trials on the vectors of its encoders."""
