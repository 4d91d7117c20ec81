"""Detects which release of TRL a script is written for, and puts this package in TRL's place."""
