"""Tests of `compat.trl`, and what they hold it against."""
