"""Libraries from PyPI with trainers of their own, on HF's Trainer and on ours (`make zoo`)."""

from __future__ import annotations

import importlib.util

import torch

if importlib.util.find_spec("torchvision"):
    # PyPI's is compiled for CUDA: on a CPU its import asks for operators that are not there.
    for _name in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
