"""Detection of the TRL release that a script is written for, and substitution of this package for TRL."""
