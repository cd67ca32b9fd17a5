"""The paper's claims and figures, for comparison with measured ones. Measures nothing."""
