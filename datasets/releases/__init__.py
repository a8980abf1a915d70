"""Published data sets: their facts, and how their downloads are checked, cut, split and measured."""
