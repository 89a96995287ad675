"""Tables → prepared shards → the plan → micro-batches."""
