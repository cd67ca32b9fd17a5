"""Looks at a whole data set before it is trained on: scan, shape, duplicates, and the command to train.

Changes nothing.
"""
