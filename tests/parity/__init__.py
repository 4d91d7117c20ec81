"""Same script, same numbers: compat's Trainer beside transformers' own, compared to the bit.

`setups/` lists what is run, `parts/` has what it is made of, `record.py` says what is compared and
`test_parity.py` compares. A new set-up is one `Setup(...)` in a tuple of `setups/`. Before it accuses
compat, `pytest tests/parity --ours transformers` shows that it gives the same record twice.
"""
