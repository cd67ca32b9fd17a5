"""Labels from tables and folders, and the matching of table rows to images. Reads no image."""
