"""Registered optical and SAR images with label maps: found, read, augmented, corrupted, and prepared from their releases."""
