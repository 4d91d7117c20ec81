"""Best-of-n sampling and dataset formatting.

Mirrors `trl/extras` of TRL 0.7.11.
"""

from __future__ import annotations

from compat.trl.extras.best_of_n_sampler import BestOfNSampler

__all__ = ["BestOfNSampler"]
