"""Networks that compare images, and their published weights. This package depends on no program."""
