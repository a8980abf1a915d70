"""A task with several seeds: one run for each, several at once, one table of all."""
