"""The paper's measurements of a model: programs, metrics, claims and the report.

This package depends on no stage and no command.
"""
