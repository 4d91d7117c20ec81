from __future__ import annotations

from types import SimpleNamespace

import datasets
import pytest
import torch

from compat.trl.trainer import dpo_reference


def test_the_trained_adapter_is_active_afterwards():
    active = []
    model = SimpleNamespace(set_adapter=active.append)

    def fail():
        with dpo_reference.adapter_set(model, "reference", "trained"):
            assert active == ["reference"]
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert active == ["reference", "trained"]


def test_columns_are_added_once():
    args = SimpleNamespace(dataloader_num_workers=0, dataloader_pin_memory=False, disable_tqdm=True)
    accelerator = SimpleNamespace(prepare=lambda loader: loader, gather_for_metrics=lambda values: values)
    rows = datasets.Dataset.from_dict({"length": [1.0, 2.0, 3.0]})

    def add(dataset, compute):
        return dpo_reference.add_columns(
            dataset,
            2,
            "",
            args,
            accelerator,
            lambda batch: torch.tensor([row["length"] for row in batch]),
            compute,
        )

    found = add(rows, lambda batch: (-batch, batch.bfloat16() * 2))
    assert found["reference_chosen_logps"][:] == [-1.0, -2.0, -3.0]
    assert found["reference_rejected_logps"][:] == [2.0, 4.0, 6.0]
    assert add(found, None) is found
