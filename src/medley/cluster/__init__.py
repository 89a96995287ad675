"""Where Medley runs: join or start Ray (`session`), send a verb to a running cluster (`submit`)."""
