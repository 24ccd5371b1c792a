"""The `sed-hf` command: a file for each subcommand."""

from .main import main as main
