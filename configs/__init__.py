"""Configs, one file per experiment. `--config=NAME` finds them from any folder."""
