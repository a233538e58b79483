"""The values that options can take.

This module imports nothing, so that `--help` and errors about options appear before PyTorch is loaded. `TRUNCATIONS`,
`CLASSIFIER_HEADS` and `OPTIMIZERS` repeat the values of the modules that implement them; a test compares them.
"""

HUB_ID = "stanfordnlp/snli"
WIKITEXT = "Salesforce/wikitext"
TEXT_SOURCES = ("raw", "parse")
SAMPLING_STRATEGIES = ("group_by_length", "random")
TRUNCATIONS = ("longest", "ratio", "only_first", "only_second", "do_not_truncate")
CLASSIFIER_HEADS = ("pooler", "mlp", "matching")
OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "adam_torch")
SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")
PREDICTION_FORMATS = ("jsonl", "json", "csv")
TRACKERS = ("none", "tensorboard", "wandb", "trackio")
