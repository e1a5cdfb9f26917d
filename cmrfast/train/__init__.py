"""Training: one loop for every method, checkpoints that survive anything, logs."""
