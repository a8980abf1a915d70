"""Masked pretraining of Alliance on shards of unlabelled imagery."""
