"""Datasets and collators: rows in, tokens and batches out."""

from __future__ import annotations
