"""Labels of images: the tables and folders that hold them, and how their rows find the images. Reads no image."""
