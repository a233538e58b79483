"""`bert-snli serve`."""

import argparse
import functools
from pathlib import Path

from bert_snli.cli.options import add_hub, add_model, positive
from bert_snli.console import quiet_libraries

SUMMARY = "Show a fine-tuned model in a web page."
HELP = """\
Serve a web page that predicts a pair of sentences or a file of pairs, and an endpoint for programs. It works offline.

examples:
  bert-snli serve runs/snli
  bert-snli serve runs/snli --space my_space
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_model(parser)
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on. 0.0.0.0 accepts other machines.")
    parser.add_argument("--port", type=positive, help="Port to listen on. (default: the first free port from 7860)")
    add_hub(parser)
    parser.add_argument("--space", type=Path, metavar="DIR", help="Write a Hugging Face Space to DIR and do not serve.")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from bert_snli.serving.app import serve, write_space

    quiet_libraries()
    if args.space is None:
        log = functools.partial(print, flush=True)
        serve(args.model, host=args.host, port=args.port, revision=args.revision, log=log)
    else:
        write_space(args.model, args.space, revision=args.revision)
        print(f"Wrote {args.space}; its README.md says how to try it and how to upload it")
