"""Whole scenes through a trained network, window by window, into georeferenced maps."""
