"""Measurements that are run by hand: speed, memory, and the same figures made with PyTorch."""
