"""Imports every module of the package, for the processes that are forked from this one."""

import pkgutil

import diffae_jax

for module in pkgutil.walk_packages(diffae_jax.__path__, "diffae_jax."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
