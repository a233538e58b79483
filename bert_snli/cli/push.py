"""`bert-snli push`."""

import argparse
import tempfile
from pathlib import Path

from bert_snli.cli.options import folder
from bert_snli.console import add_token, quiet_libraries
from bert_snli.errors import BertSnliError

SUMMARY = "Upload a model to the Hugging Face Hub."
HELP = """\
Push a converted, pretrained or fine-tuned model to the Hugging Face Hub in one commit: weights, code, tokenizer,
results, the files model.onnx and model_int8.onnx in the subfolder onnx, and a generated model card. The command does
not push checkpoints, logs or other files. A README.md that you wrote yourself is pushed unchanged; move it away to get
a generated model card.

examples:
  bert-snli push runs/snli --repo_id user/name
  bert-snli push runs/snli --repo_id user/name --dry_run --output_dir staged
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="Model folder.")
    parser.add_argument("--repo_id", required=True, metavar="USER/NAME", help="Repository on the Hub.")
    parser.add_argument("--private", action="store_true", help="Create the repository as private.")
    parser.add_argument("--revision", metavar="BRANCH", help="Branch; it is created if it is missing. (default: main)")
    add_token(parser)
    parser.add_argument("--commit_message", default="Push with bert-snli", help="Commit message.")
    parser.add_argument("--license", default="apache-2.0", help="Licence in the model card: a licence id of the Hub.")
    parser.add_argument("--dry_run", action="store_true", help="Write the files to --output_dir and push nothing.")
    parser.add_argument("--output_dir", type=folder, help="New folder for --dry_run.")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.dry_run != (args.output_dir is not None):
        raise BertSnliError("--dry_run and --output_dir: one needs the other; give both or neither")
    quiet_libraries()
    from bert_snli.hub import check_login, check_repo_id, stage_upload, upload
    from bert_snli.model_card import is_converted_model
    from conversion.certificate import verify_conversion

    check_repo_id(args.repo_id)
    if not args.dry_run:
        check_login(args.repo_id)
    if is_converted_model(args.model):
        verify_conversion(args.model)
    with tempfile.TemporaryDirectory() as temporary:
        staged = args.output_dir or Path(temporary) / "model"
        for note in stage_upload(args.model, args.repo_id, staged, license=args.license, revision=args.revision):
            print(note)
        names = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
        if args.dry_run:
            print(*names, f"{staged}: {len(names)} files; nothing was pushed", sep="\n")
            return
        options = {"private": args.private, "revision": args.revision, "commit_message": args.commit_message}
        print(f"{args.repo_id}: {len(names)} files pushed, {upload(staged, args.repo_id, **options)}")
