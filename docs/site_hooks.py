"""Hooks that MkDocs calls when it builds the documentation site (`make docs`).

They generate `reference/cli.md` from the help of the commands and `reference/configuration.md` from the dataclasses of
the options. Links to files outside `docs/`, which work on GitHub, become links to copies of these files.
"""

import contextlib
import io
import os
import posixpath
import re
from dataclasses import Field, fields
from pathlib import Path
from unittest.mock import patch

REPOSITORY = Path(__file__).resolve().parent.parent
GENERATED_PAGES = ("reference/cli.md", "reference/configuration.md")
OUTSIDE_LINK = re.compile(r"\]\((?:\.\./)+((?:benchmarks|bert_snli|configs|conversion|examples)/[\w./]+)\)")


def on_files(files, config):
    """Add the generated pages, and the files outside `docs/` that pages link to."""
    from mkdocs.structure.files import File, InclusionLevel

    for path, make_page in zip(GENERATED_PAGES, (make_cli_page, make_configuration_page), strict=True):
        files.append(File.generated(config, path, content=make_page()))
    linked = {path for page in files.documentation_pages() for path in OUTSIDE_LINK.findall(page.content_string)}
    for path in sorted(linked):
        source = str(REPOSITORY / path)
        copy = File.generated(config, f"source/{path}", abs_src_path=source, inclusion=InclusionLevel.INCLUDED)
        files.append(copy)
    return files


def on_page_markdown(markdown, page, config, files):
    """Let links to files outside `docs/` lead to their copies."""
    folder = posixpath.dirname(page.file.src_uri)
    return OUTSIDE_LINK.sub(lambda link: f"]({posixpath.relpath(f'source/{link[1]}', folder)})", markdown)


def make_cli_page() -> str:
    """Return the page with the `--help` of each command."""
    from bert_snli.cli.main import COMMANDS, TRAINING

    page = ["# Command line", "The output of `--help` of each command. The build of this page generates it."]
    for name in ("", *TRAINING, *COMMANDS):
        page += [f"## bert-snli {name}".rstrip(), f"```text\n{help_of(name)}\n```"]
    return "\n\n".join(page) + "\n"


def help_of(command: str) -> str:
    """Return what `bert-snli COMMAND --help` prints."""
    from bert_snli.cli import main

    output = io.StringIO()
    with (
        patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(output),
        contextlib.suppress(SystemExit),
    ):
        main([*command.split(), "--help"])
    return output.getvalue().strip()


def make_configuration_page() -> str:
    """Return the page with the options of training and the recipes."""
    from bert_snli.recipes import RECIPES
    from bert_snli.training.arguments import BaseTrainingArguments, FinetuneArguments, PretrainArguments

    page = [
        "# Configuration",
        "Each field is an option of the command (`--learning_rate 1e-3`), a key of a YAML recipe "
        "(`learning_rate: 1e-3`) and an argument of the dataclass in Python (`learning_rate=1e-3`). The command line "
        "overrides the recipe that `--config` names. The build of this page generates it.",
    ]
    shared = {entry.name for entry in fields(BaseTrainingArguments)}
    for command, arguments_class in (("finetune", FinetuneArguments), ("pretrain", PretrainArguments)):
        page += [f"## {command}", f"`bert-snli {command}`, `{arguments_class.__name__}`"]
        for title, is_shared in ((f"Options of {command} only", False), ("Options of both commands", True)):
            options = [entry for entry in fields(arguments_class) if (entry.name in shared) == is_shared]
            rows = [option_row(entry, entry.name in arguments_class.required) for entry in options]
            header = "| option | type | default | description |\n|---|---|---|---|"
            page += [f"### {command}: {title}", "\n".join([header, *rows])]
    page += ["## Recipes", "`--config NAME` reads one of these recipes, `--config FILE` a file in the same format."]
    for name, path in RECIPES.items():
        page += [f"### {name}", f"```yaml\n{path.read_text(encoding='utf-8').strip()}\n```"]
    return "\n\n".join(page) + "\n"


def option_row(entry: Field, is_required: bool) -> str:
    """Return the table row of an option."""
    kind = entry.type if isinstance(entry.type, str) else getattr(entry.type, "__name__", str(entry.type))
    default = "required" if is_required else "none" if entry.default in ("", None) else f"`{entry.default}`"
    choices = entry.metadata["choices"]
    text = entry.metadata["help"] + (f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (f"`{entry.name}`", kind, default, text)) + " |"
