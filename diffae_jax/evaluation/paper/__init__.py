"""What the paper claims and the figures it gives, to be held beside measured ones. Measures nothing."""
