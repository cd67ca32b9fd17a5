"""Images, labels and z: what reads them, and how they become batches. Knows no network."""
