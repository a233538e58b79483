"""`python -m conversion SOURCE --output_dir DIR` is `bert-snli convert`."""

import sys

from bert_snli.console import OneLineErrorParser, run
from conversion.command import CONVERT_HELP, add_convert_arguments, run_convert

parser = OneLineErrorParser(prog="python -m conversion", description=CONVERT_HELP)
add_convert_arguments(parser)
args = parser.parse_args()
sys.exit(run("python -m conversion", lambda: run_convert(args)))
