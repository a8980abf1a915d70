"""Synthetic scenes with known truth. NOTHING HERE IS MEASURED."""
