"""`compat convert SRC DST`: turn a checkpoint into another form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compat.cli.terminal import say

if TYPE_CHECKING:
    import argparse


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "convert",
        help="turn a checkpoint into another form",
        description="Turn a checkpoint of Hugging Face's, Lightning's, FSDP's or DeepSpeed's into another "
        "form, one tensor at a time. Nothing that a checkpoint holds is run.",
        allow_abbrev=False,
    )
    parser.add_argument("src", metavar="SRC", help="a checkpoint; its form is found out")
    parser.add_argument("dst", metavar="DST", help="what to write; it appears whole or not at all")
    parser.add_argument(
        "--to",
        metavar="FORM",
        help="hf, lightning, sharded or pretrained; told by DST's name where it is not given: *.ckpt is "
        "lightning, checkpoint-N is hf, all else is pretrained",
    )
    parser.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="of a file of weights (default: 5GB)"
    )
    parser.add_argument("--dtype", help="what floating-point weights become, with --to pretrained")
    parser.add_argument(
        "--config", metavar="PATH", help="a config.json, or its folder, for a checkpoint that has none"
    )
    parser.add_argument(
        "--prefix", help="what stands before the model's names in a Lightning checkpoint, as in `net.`"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DST where it exists")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(main=main, options=tuple(parser._option_string_actions))


def main(namespace: argparse.Namespace) -> int:
    """Convert, and print the result.

    Returns:
        0, or 2 on failure.
    """
    from compat.checkpoint.convert import convert
    from compat.errors import CheckpointError

    try:
        done = convert(
            namespace.src,
            namespace.dst,
            namespace.to,
            namespace.max_shard_size,
            dtype=namespace.dtype,
            config=namespace.config,
            prefix=namespace.prefix,
            overwrite=namespace.overwrite,
            quiet=namespace.quiet,
        )
    except CheckpointError as error:
        say("compat convert", error)
        return 2
    print(done)
    return 0
