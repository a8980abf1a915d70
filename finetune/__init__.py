"""Downstream tasks on a pretrained encoder. None is here yet."""
