"""`bert-snli config`."""

import argparse
from importlib import resources

SUMMARY = "Print a configuration for accelerate launch."
HELP = """\
Print a configuration file for `accelerate launch`. bert-snli finetune and bert-snli pretrain do not need it.

example:
  bert-snli config > accelerate_config.yaml
  accelerate launch --config_file accelerate_config.yaml \\
      -m bert_snli.finetune models/small --output_dir runs/snli
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no options."""


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    print(resources.files("bert_snli").joinpath("accelerate_config.yaml").read_text(encoding="utf-8"), end="")
