"""HF's Trainer as a module and a datamodule for a Lightning Trainer of the user's own."""
