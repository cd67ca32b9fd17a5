"""Reads files that PyTorch wrote and executes nothing in them; needs no PyTorch.

Knows no network and no weights by name.
"""
