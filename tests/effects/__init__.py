"""The effects, as data: each argument of each generation is shown to do something, or to do nothing.

An argument's script runs twice, without it and with it. Looked at is what the run did, never what the
arguments hold.
"""

from __future__ import annotations

from tests.effects.checkpoints import CHECKPOINTS
from tests.effects.control import CONTROL
from tests.effects.data import DATA
from tests.effects.evaluation import EVALUATION
from tests.effects.hub import HUB, REPORTS
from tests.effects.length import LENGTH
from tests.effects.optimizer import OPTIMIZER
from tests.effects.precision import PRECISION
from tests.effects.step import STEP
from tests.effects.strategy import RETIRED, SCRIPT, STRATEGY

EFFECTS = (
    *LENGTH,
    *OPTIMIZER,
    *PRECISION,
    *STEP,
    *DATA,
    *CONTROL,
    *EVALUATION,
    *CHECKPOINTS,
    *HUB,
    *REPORTS,
    *STRATEGY,
    *RETIRED,
    *SCRIPT,
)
