"""Encoders that other projects released, as ours: `launch/convert.py` (docs/weights.md).

One module per family says which names a file holds and what they mean; the rest is common.
"""
