"""Imports every module of the package, for the processes that are forked from this one.

It also imports the libraries that the package imports when it needs them. Each process would
otherwise spend seconds on that.
"""

import gc
import importlib
import pkgutil

import diffae_jax
from diffae_jax.runtime.logs import quiet_libraries

LIBRARIES = (
    "grain",
    "matplotlib.backends.backend_agg",
    "ml_collections.config_flags",
    "orbax.checkpoint.experimental.v1",
    "scipy.stats",
    "sklearn.datasets",
    "sklearn.linear_model",
    "sklearn.model_selection",
    "sklearn.svm",
    "tensorflow_datasets",
)

with quiet_libraries():
    for name in LIBRARIES:
        importlib.import_module(name)

for module in pkgutil.walk_packages(diffae_jax.__path__, "diffae_jax."):
    if not module.name.endswith("__main__") and not module.name.startswith("diffae_jax.demo."):  # Gradio is large
        importlib.import_module(module.name)

gc.freeze()  # the forked processes need not search these objects for garbage
