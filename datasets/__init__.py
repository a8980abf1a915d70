"""Bytes to tensors: scenes of any format, shards made of them, and the readers that feed training."""
