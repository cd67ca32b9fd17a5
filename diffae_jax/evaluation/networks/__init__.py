"""The networks in whose features images are compared, and their published weights. Know no program."""
