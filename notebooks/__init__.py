"""Notebooks for Jupyter and Colab, and the commands that execute and link them."""
