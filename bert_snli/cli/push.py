"""`bert-snli push`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bert_snli.console import quiet_libraries
from bert_snli.errors import BertSnliError

SUMMARY = "put a model on the hub"
HELP = """\
Push a converted, pretrained or fine-tuned model to the Hugging Face Hub in one commit: weights, code, tokenizer, the
results of training and evaluation, and a model card made from them. Checkpoints, logs and other files are not pushed.

A README.md that you wrote yourself is pushed unchanged; move it away to get a generated model card.

examples:
  bert-snli push runs/snli --repo_id user/name
  bert-snli push runs/snli --repo_id user/name --dry_run --output_dir staged      what would be pushed, to look at
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="model folder")
    parser.add_argument("--repo_id", required=True, help="where: user/name or organisation/name")
    parser.add_argument("--private", action="store_true", help="create the repository as private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, made if it is missing (default: main)")
    parser.add_argument("--commit_message", help="what the commit says")
    parser.add_argument(
        "--license", help="licence that the card names, as the hub abbreviates it (default: apache-2.0)"
    )
    parser.add_argument("--dry_run", action="store_true", help="write what would be pushed into --output_dir, offline")
    parser.add_argument("--output_dir", type=Path, help="new folder for --dry_run")


def run(args: argparse.Namespace) -> None:
    """`bert-snli push`."""
    if args.dry_run != (args.output_dir is not None):
        raise BertSnliError("--dry_run and --output_dir go together: give both or neither")
    from bert_snli.card_templates import is_converted_model
    from bert_snli.hub import COMMIT_MESSAGE, LICENSE, check_login, check_repo_id, push, stage, write_staged
    from conversion.certificate import verify_conversion

    quiet_libraries()
    check_repo_id(args.repo_id, "--repo_id")
    if not args.dry_run:
        check_login(args.repo_id)
    if is_converted_model(args.model):
        verify_conversion(args.model)
    staged = stage(args.model, args.repo_id, license=args.license or LICENSE, revision=args.revision)
    if staged.own_card:
        print(f"{args.model / 'README.md'}: your own file is pushed unchanged")
    if staged.left_out:
        print(f"not pushed, because they were measured on other weights: {', '.join(staged.left_out)}")
    if args.dry_run:
        write_staged(staged, args.output_dir)
        print(*sorted(staged.files), f"{args.output_dir}: {len(staged.files)} files; nothing was pushed", sep="\n")
    else:
        address = push(
            staged,
            args.repo_id,
            private=args.private,
            revision=args.revision,
            commit_message=args.commit_message or COMMIT_MESSAGE,
        )
        print(f"{args.repo_id}: {len(staged.files)} files pushed, {address}")
