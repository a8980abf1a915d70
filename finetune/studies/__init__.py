"""Studies of data and of trained networks, beside training."""
