"""Moved."""

from finetune.scores import *  # noqa: F403
