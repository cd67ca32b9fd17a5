"""Images, labels and latent codes: reading them and making batches. Imports no network."""
