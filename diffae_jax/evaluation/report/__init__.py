"""The report of an evaluation as one HTML page. Depends on the results only."""
