"""What is private or differs by release in transformers, accelerate and lightning."""
