"""A run as a chain of stages, each reading and writing the run folder and picking up where it stopped.

Knows no command.
"""
