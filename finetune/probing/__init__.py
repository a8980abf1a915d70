"""Probes of an encoder on labelled images and label maps, beside raw statistics and the same encoder without training."""
