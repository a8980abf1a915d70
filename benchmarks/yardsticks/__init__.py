"""Tasks on real images whose labels are told from features that are taken as they are: what benchmarks/tasks.py runs."""
