"""Lightning as the engine of an HF Trainer: build, module, data, loops, precision, strategies, evaluation."""
