"""Inspects a data set before training: scan, shape, duplicates, and the training command.

Changes no files of the data set.
"""
