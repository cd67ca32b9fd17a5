"""One experiment a file. Installed as `diffae_jax.configs`; `--config=NAME` finds them from any folder."""
