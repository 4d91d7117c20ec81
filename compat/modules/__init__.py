"""HF's Trainer as a module and a datamodule for a user's Lightning Trainer."""
