"""What is private or differs by release in transformers, accelerate and lightning; nothing else knows of it."""
