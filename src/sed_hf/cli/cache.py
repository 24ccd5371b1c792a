"""`sed-hf cache`: show or clear the cache of encoded class names."""

import argparse

from .arguments import add_command


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "cache",
        run,
        help="show or clear the cache of encoded class names",
        description="Show where encoded class names are cached, and how much that is.",
    )
    parser.add_argument("--clear", action="store_true", help="remove them")


def run(arguments: argparse.Namespace) -> int:
    """Show or clear the cache."""
    from ..inference.class_embeddings import ClassEmbeddingCache

    cache = ClassEmbeddingCache()
    num_classes, num_bytes = cache.size()
    if arguments.clear:
        cache.clear()
    state = "removed from" if arguments.clear else "in"
    print(f"sed-hf: {num_classes} classes, {num_bytes / 2**20:.0f} MiB {state} {cache.directory}")
    return 0
