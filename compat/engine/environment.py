"""The processes of a job as HF's arguments detect them, whichever launcher started them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from typing_extensions import override

if TYPE_CHECKING:
    from compat.upstream.environment import Facts


class HFEnvironment(ClusterEnvironment):
    """Passes the ranks from HF's arguments to Lightning; HF's arguments also create the process group.

    Args:
        facts: the machine and the process.
    """

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self._facts = facts

    @property
    @override
    def creates_processes_externally(self) -> bool:
        return True

    @property
    @override
    def main_address(self) -> str:
        return self._facts.main_address

    @property
    @override
    def main_port(self) -> int:
        return self._facts.main_port

    @staticmethod
    @override
    def detect() -> bool:
        return False

    @override
    def world_size(self) -> int:
        return self._facts.world_size

    @override
    def set_world_size(self, size: int) -> None:
        """Do nothing: the size of the job is fixed."""

    @override
    def global_rank(self) -> int:
        return self._facts.process_index

    @override
    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the launcher has assigned the rank of this process."""

    @override
    def local_rank(self) -> int:
        return self._facts.local_process_index

    @override
    def node_rank(self) -> int:
        return self._facts.process_index // self._facts.devices
