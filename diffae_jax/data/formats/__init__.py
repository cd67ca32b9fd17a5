"""What reads each format of images, behind the interface of `sources.Source`."""
