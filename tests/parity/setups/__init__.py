"""The set-ups, as data: each is run under both libraries and has to give equal records.

A set-up trains two epochs of 26 rows in batches of four unless it says otherwise: seven
micro-steps an epoch, the last of them short.
"""

from __future__ import annotations

from tests.parity.setups.checkpoints import ADAPTERS, CHECKPOINTS, RESUME
from tests.parity.setups.evaluation import EVALUATION, GENERATION, LOGGING
from tests.parity.setups.numerics import NUMERICS, OPTIMIZERS, SCHEDULERS
from tests.parity.setups.overrides import SUBCLASSES
from tests.parity.setups.steering import CALLBACKS, SESSIONS
from tests.parity.setups.training import ACCUMULATION, DATA, LENGTH, MODELS

SETUPS = (
    *MODELS,
    *ACCUMULATION,
    *LENGTH,
    *DATA,
    *NUMERICS,
    *OPTIMIZERS,
    *SCHEDULERS,
    *LOGGING,
    *EVALUATION,
    *GENERATION,
    *CHECKPOINTS,
    *RESUME,
    *CALLBACKS,
    *SUBCLASSES,
    *ADAPTERS,
    *SESSIONS,
)
BY_NAME = {setup.name: setup for setup in SETUPS}
