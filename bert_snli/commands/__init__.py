"""The commands of `bert-snli`, a file each: its help, its options (`add_arguments`) and what it does (`run`).

They import what is heavy only when they run, so that `--help` answers at once.
"""
