"""What a config needs on a machine that need not be there: memory, time and network traffic.

The programs that a run would use are compiled for the target, each in a process of its own, and
their text is read. This package knows stages and inference, but runs nothing that they compile.
"""
