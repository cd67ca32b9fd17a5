"""Inference with a trained model: `DiffAE`, its compiled functions, edits, batches and bundles.

Imports no stage and no command.
"""
