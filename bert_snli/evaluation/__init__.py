"""How good a classifier is: metrics and pictures."""
