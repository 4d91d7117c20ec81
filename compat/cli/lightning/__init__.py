"""`compat fit | validate | test | predict`: a LightningCLI with Hugging Face's arguments."""

from __future__ import annotations

from compat.cli.lightning.cli import HFLightningCLI, run
from compat.cli.lightning.data_options import DataFiles
from compat.cli.lightning.model import PretrainedModule

__all__ = ["DataFiles", "HFLightningCLI", "PretrainedModule", "run"]
