"""x"""


def write_report(folder, results):
    """x"""
