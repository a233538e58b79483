"""The labels of natural language inference, in d2l's order (d2l 15.4)."""

D2L_LABELS = ("entailment", "contradiction", "neutral")

# SNLI in `datasets` has another order (neutral 1, contradiction 2): always map labels by name.
ID2LABEL = dict(enumerate(D2L_LABELS))
LABEL2ID = {name: index for index, name in ID2LABEL.items()}

# Data sets such as HANS have two labels.
NON_ENTAILMENT = "non-entailment"
TWO_WAY_LABELS = ("entailment", NON_ENTAILMENT)
