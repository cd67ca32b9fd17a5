"""The tabs of the page, one file each.

Each file has TITLE; `suits`, whether a model has what the tab shows; and `add`, which builds it.
"""
