"""Recipes of `bert-snli finetune` and `pretrain`: YAML files with their options, installed with the package."""

from pathlib import Path

from bert_snli.errors import BertSnliError

RECIPES = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def find_recipe(name_or_path: str) -> Path:
    """Return the file of a recipe.

    Args:
        name_or_path: the name of a recipe of this package, such as `d2l_book`, or the path of a YAML file.
    """
    if name_or_path in RECIPES:
        return RECIPES[name_or_path]
    path = Path(name_or_path)
    if path.name == name_or_path and not path.suffix and not path.exists():
        raise BertSnliError(f"config {name_or_path}: no such recipe; give a YAML file or one of {', '.join(RECIPES)}")
    return path
