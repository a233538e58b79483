"""Recipes of `bert-snli finetune` and `pretrain`: YAML files with their options, installed with the package."""

from pathlib import Path

RECIPES = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
