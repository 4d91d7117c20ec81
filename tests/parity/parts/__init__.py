"""What set-ups are made of: models, data, callbacks, subclasses and scripts."""
