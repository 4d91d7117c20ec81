"""Set-ups that run on TRL 0.7.11 and on `compat.trl` alike; what the former gave lies in `../golden`."""
