"""One module per task: its settings, and what it brings to the frame of all trainers."""
