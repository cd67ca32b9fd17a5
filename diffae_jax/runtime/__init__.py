"""What all rooms may use: errors, files, the console, and the machine: cluster, mesh, sharding, precision, compilation.

Knows no image, no network and no run.
"""
