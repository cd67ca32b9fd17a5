"""A run as a chain of resumable stages. Each stage reads and writes the run folder."""
