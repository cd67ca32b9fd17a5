"""Inference with a trained model: `DiffAE`, its compiled programs, edits, batches and bundles.

Imports no stage and no command.
"""
