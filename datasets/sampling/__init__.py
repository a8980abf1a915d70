"""Which sample comes when, and where it lies: orders, loaders, splits, placements, statistics, faults."""
