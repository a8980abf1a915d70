"""Encoders and trained networks as files for other tools: torch.export programs, ONNX, folders in the layout of the hub."""
