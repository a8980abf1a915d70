"""Downstream tasks. `pad`: SAR-RGB segmentation, `s2fin`: few-label classification; each trains through `engine.training`."""
