"""Chips: whole images with one label or several, found in folders and lists, split, read and augmented."""
