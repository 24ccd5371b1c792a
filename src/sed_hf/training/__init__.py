"""Training on accelerate: recipe, data, optimizer, checkpoints, loop."""
