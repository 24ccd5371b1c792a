"""Show or clear the cache of encoded class names."""

import argparse

from .arguments import argument

ARGUMENTS = [argument("--clear", action="store_true", help="remove them")]


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
