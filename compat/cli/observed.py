"""`python -m compat.cli.observed JOB [-m] SCRIPT ARGS`: a run of `compat verify`, in its own process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from compat.cli.run import run_script
from compat.upstream.children import follow_parent, rank
from compat.verification.job import Job

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(words: Sequence[str]) -> None:
    """Run a script under the engine of a job, and record it.

    Args:
        words: the job as JSON, and the script with its arguments.
    """
    follow_parent()
    from compat.verification.observation import observed

    job = Job.from_json(words[0])
    observed(job, rank(), lambda: _run(job.engine, list(words[1:])))


def _run(engine: str, words: list[str]) -> None:
    if engine == "compat":
        from compat.cli import main

        sys.argv[1:] = ["run", "--quiet", *words]
        main(sys.argv[1:])
        return
    as_module = words[0] == "-m"
    script, *args = words[1:] if as_module else words
    run_script(script, args, as_module=as_module)


if __name__ == "__main__":
    main(sys.argv[1:])
