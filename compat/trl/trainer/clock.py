"""Wall-clock times of the parts of a PPO step."""

from __future__ import annotations

import time


class Clock:
    """Measures the wall-clock seconds of consecutive parts of one step."""

    def __init__(self) -> None:
        self._begin = self._last = time.time()
        self._times: dict[str, float] = {}

    def start(self) -> None:
        """Begin a part."""
        self._last = time.time()

    def stop(self, name: str) -> None:
        """End a part, and begin the next one.

        Args:
            name: the key of its seconds.
        """
        self._times[name] = time.time() - self._last
        self.start()

    def times(self) -> dict[str, float]:
        """Return the seconds of all parts by name, and their total."""
        return {**self._times, "time/ppo/total": time.time() - self._begin}
