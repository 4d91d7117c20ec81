"""Verifies on a user's own script, data and machine that both Trainers give the same results."""

from __future__ import annotations
