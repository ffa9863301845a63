"""Adapters: hand-written layers, losses and optimizers in other forms than the plain contract."""
