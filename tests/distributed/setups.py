"""Set-ups that mean something only on several processes: how the data is shared out among them."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from tests.parity.bench import Bench, Setup
from tests.parity.parts import data, scripts
from tests.parity.setups import BY_NAME as FOR_ONE
from tests.parity.setups.common import BEST, STEPS, UNDISPATCHED

if TYPE_CHECKING:
    from collections.abc import Mapping


def sharing(**how: bool) -> dict[str, Any]:
    return {"accelerator_config": how, **STEPS}


def unlike_streams() -> data.Stream:
    """A stream that runs out earlier on the second process."""
    return data.stream(10 if os.environ.get("RANK") == "1" else 26)


EVEN: Mapping[str, Any] = {"train": partial(data.regression, 24), "eval": partial(data.regression, 8, 1)}


def by_hand(bench: Bench) -> Any:
    """Train another model in a loop over `trainer.accelerator`, and use all by which processes speak."""
    face = bench.trainer().accelerator
    rank = face.process_index
    torch.manual_seed(rank)
    model: Any = torch.nn.Linear(4, 1)
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    loader: Any = torch.utils.data.DataLoader(data.regression(), 3)
    model, optimizer, loader = face.prepare(model, optimizer, loader)
    frozen = face.prepare_model(torch.nn.Linear(4, 1), evaluation_mode=True)
    face.gradient_accumulation_steps = 2
    kept: list[Any] = []
    for batch in loader:
        with face.accumulate(model):
            loss = ((model(batch["x"]) - batch["labels"][:, None]) ** 2).mean()
            face.backward(loss)
            if face.sync_gradients:
                kept.append(face.clip_grad_norm_(model.parameters(), 0.5).item())
            optimizer.step()
            optimizer.zero_grad()
        kept.append(face.gather_for_metrics(batch["labels"]).tolist())
    if rank == 1:
        face.set_trigger()
    with face.split_between_processes(list(range(5)), apply_padding=True) as share:
        kept.append(share)
    with face.main_process_first():
        kept.append(face.is_main_process)
    kept += [
        face.check_trigger(),
        face.reduce(torch.tensor([1.0 + rank]), "mean").tolist(),
        face.pad_across_processes(torch.ones(2 + rank), pad_index=-1).tolist(),
        face.gather(torch.tensor([rank])).tolist(),
        face.on_last_process(lambda: rank)(),
        [face.num_processes, rank, face.local_process_index, face.is_last_process, face.use_distributed],
        [type(model).__name__, type(face.unwrap_model(model)).__name__, type(frozen).__name__],
        [parameter.tolist() for parameter in model.parameters()],
    ]
    return kept


def forward_within_backward(base: type) -> type:
    """A Trainer whose model is called again while the backward runs, as losses with a gradient cache do."""

    class Again(base):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            with torch.no_grad():
                logits = model(**inputs)["logits"]
            loss: Any = ((logits.requires_grad_() - inputs["labels"].view_as(logits)) ** 2).mean()

            def again(gradient: torch.Tensor) -> None:
                with torch.enable_grad():
                    (model(**inputs)["logits"] * gradient).sum().backward()

            logits.register_hook(again)
            return (loss, {"logits": logits}) if return_outputs else loss

    return Again


SETUPS = (
    Setup("accelerator/by-hand", script=by_hand),
    Setup(
        "accumulation/forward-within-backward",
        subclass=forward_within_backward,
        args={"gradient_accumulation_steps": 3},
    ),
    Setup("sharing/uneven-batches", args=sharing(even_batches=False), **EVEN),
    Setup("sharing/split-batches", args=sharing(split_batches=True)),
    Setup("sharing/split-batches-uneven", args=sharing(split_batches=True, even_batches=False), **EVEN),
    Setup("sharing/dispatched", args=sharing(dispatch_batches=True)),
    Setup("sharing/dispatched-and-split", args=sharing(dispatch_batches=True, split_batches=True)),
    Setup("sharing/drop-last", args={"dataloader_drop_last": True, **STEPS}),
    Setup("sharing/drop-last-uneven", args={"dataloader_drop_last": True, **sharing(even_batches=False)}),
    Setup("sharing/streams-of-unlike-length", train=unlike_streams, args={"max_steps": 9, **UNDISPATCHED}),
    Setup(
        "sharing/stream-dispatched",
        train=data.stream,
        args={"max_steps": 9, **sharing(dispatch_batches=True)},
    ),
)


def failing_evaluation(bench: Bench) -> Any:
    try:
        return bench.trainer().evaluate()
    except Exception as error:  # noqa: BLE001 (any error is the result here)
        return type(error).__name__, str(error)


FOR_EVER = {
    "uneven/batches": [4, 3],
    "uneven/split-batches": [7, 6],
    "uneven/evaluation": [2, 1],
}
"""Set-ups in which the first process has more batches than the second, and HF waits for ever."""

UNEVEN = (
    Setup("uneven/batches", args=sharing(even_batches=False), script=scripts.failing),
    Setup("uneven/split-batches", args=FOR_ONE["data/split-batches"].args, script=scripts.failing),
    Setup("uneven/evaluation", args=sharing(even_batches=False), script=failing_evaluation),
)


def slow_to_save(base: type) -> type:
    """A Trainer whose first process takes its time to make the folder of a checkpoint."""

    class Slow(base):
        def save_model(self, *args: Any, **kwargs: Any) -> None:
            if self.is_world_process_zero():
                time.sleep(0.3)
            super().save_model(*args, **kwargs)

    return Slow


SLOW = Setup("best/slow-to-save", args={**BEST, "num_train_epochs": 1}, subclass=slow_to_save)
"""Under transformers 4.53, HF's processes part ways: some load the best model, the others wait for ever."""

BY_NAME = {**FOR_ONE, **{setup.name: setup for setup in (*SETUPS, *UNEVEN, SLOW)}}
