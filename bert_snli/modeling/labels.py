"""The three answers of natural language inference, in the book's order (d2l 15.4)."""

D2L_LABELS = ("entailment", "contradiction", "neutral")

# `datasets`' SNLI numbers them otherwise (neutral 1, contradiction 2): always map by name, never by number.
ID2LABEL = dict(enumerate(D2L_LABELS))
LABEL2ID = {name: index for index, name in ID2LABEL.items()}

# Sets such as HANS ask only whether the hypothesis follows.
NON_ENTAILMENT = "non-entailment"
TWO_WAY_LABELS = ("entailment", NON_ENTAILMENT)
