"""Downstream tasks. `pad`: SAR-RGB segmentation, `s2fin`: few-label classification; their trainers are to come."""
