"""The web page of `diffae demo`, which shows a trained model to people on this machine.

It calls `DiffAE`, never a network. Only `page.py`, `events.py`, `picker.py`, `tabs/` and, when it
serves, `serving.py` import Gradio.
"""
