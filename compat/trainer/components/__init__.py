"""The components of a trainer, one object for each concern. No component imports another."""
