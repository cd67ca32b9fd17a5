"""A trained model in use: the object `DiffAE`, its compiled programs, edits, batches, and the bundle.

Knows no stage and no command.
"""
