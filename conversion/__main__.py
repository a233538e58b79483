"""`python -m conversion SOURCE --output_dir DIR` is `bert-snli convert`."""

import sys

from bert_snli.console import OneLineErrorParser, run
from conversion.command import DESCRIPTION, add_arguments, main

parser = OneLineErrorParser(prog="python -m conversion", description=DESCRIPTION)
add_arguments(parser)
args = parser.parse_args()
sys.exit(run("python -m conversion", lambda: main(args)))
