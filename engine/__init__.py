"""What pretraining and fine-tuning share: ranks, the DeepSpeed engine, schedules, run folders, logs, checkpoints."""
