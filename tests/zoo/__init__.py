"""Libraries from PyPI with trainers of their own, on HF's Trainer and on ours (`make zoo`)."""
