"""Starts a function in several processes, without a script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import accelerate
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from compat.errors import ArgumentError
from compat.upstream.environment import forget_own_accelerator_state, overlaid

if TYPE_CHECKING:
    from collections.abc import Callable


def notebook_launcher(  # noqa: PLR0917 (accelerate's signature)
    function: Callable[..., Any],
    args: tuple[Any, ...] = (),
    num_processes: int | None = None,
    mixed_precision: str = "no",
    use_port: str | int | None = None,
    master_addr: str = "127.0.0.1",
    node_rank: int = 0,
    num_nodes: int = 1,
    **rendezvous: object,
) -> None:
    """Run a function in several processes that are one job, from a notebook or `python -c`.

    Mirrors `accelerate.notebook_launcher`, which does the work: processes are forked, and each finds its rank
    in the variables that torchrun sets. Make arguments and Trainer inside of the function; nothing in the
    notebook may have used a GPU before.

    Args:
        function: what to run; as it is forked, it need not be importable.
        args: its arguments, the same in every process.
        num_processes: processes on this machine; as many as there are GPUs where None.
        mixed_precision: "no", "fp16" or "bf16", where the arguments made in the function do not say.
        use_port: the rendezvous port; a free port if None.
        master_addr: the address of the first machine.
        node_rank: which of the machines this is, from 0.
        num_nodes: number of machines; the function is started once on each.
        rendezvous: options of torch's elastic launcher, as `accelerate.notebook_launcher` takes them.

    Raises:
        ArgumentError: there is no number of processes, or a GPU has been used in this process.
    """
    import torch

    processes = torch.cuda.device_count() if num_processes is None else num_processes
    if processes < 1:
        msg = (
            f"`num_processes={num_processes}`: there is no GPU here to count. Give the number of processes, "
            "1 or more."
        )
        raise ArgumentError(msg)
    if processes > 1 and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        msg = (
            f"`num_processes={processes}`: this process has used a GPU, and processes that are forked from "
            "it cannot. Restart the notebook, and use GPUs inside of the function alone."
        )
        raise ArgumentError(msg)
    if num_nodes > 1 and use_port is None:
        msg = (
            f"`num_nodes={num_nodes}`: the machines do not know where to meet. Give each the same `use_port`."
        )
        raise ArgumentError(msg)
    # It refuses to start beside an accelerator, and ours belongs to a Trainer that can do without.
    forget_own_accelerator_state()
    # accelerate passes `mixed_precision` on under a name that no code reads.
    with overlaid({"ACCELERATE_MIXED_PRECISION": mixed_precision}):
        accelerate.notebook_launcher(
            function,
            args,
            num_processes=processes,
            mixed_precision=mixed_precision,
            use_port=str(use_port or find_free_network_port()),
            master_addr=master_addr,
            node_rank=node_rank,
            num_nodes=num_nodes,
            **rendezvous,
        )
