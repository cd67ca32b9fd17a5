"""One module per storage format. Each implements `sources.Source`."""
