"""Basics for all packages: errors, files, console, logs, cluster, sharding, precision."""
