"""Training loops that users write: accelerate's interface on Lightning's Fabric."""
