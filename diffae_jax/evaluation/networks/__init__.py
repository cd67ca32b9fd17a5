"""Networks that compare images, and their published weights. Depends on no program."""
