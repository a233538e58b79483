"""The values that options can take.

This module imports nothing, so that help and mistaken options are answered before PyTorch is loaded. The modules that
implement a choice know more values only if a test fails (`tests/integration/test_start_up.py`).
"""

HUB_ID = "stanfordnlp/snli"
WIKITEXT = "Salesforce/wikitext"
TEXT_SOURCES = ("raw", "parse")
SAMPLING_STRATEGIES = ("group_by_length", "random")
TRUNCATIONS = ("longest", "ratio", "only_first", "only_second", "do_not_truncate")
CLASSIFIER_HEADS = ("pooler", "mlp", "matching")
OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "adam_torch")
SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")
TRACKERS = ("none", "tensorboard", "wandb", "trackio")
