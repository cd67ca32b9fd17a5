"""Reads files written by `torch.save` without PyTorch, and executes nothing in them.

Does not depend on any network or on the names of weights.
"""
