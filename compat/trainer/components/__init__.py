"""The concerns of a trainer, an object each. None of them imports another."""
