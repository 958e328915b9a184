"""Training: a state, an optimizer and a step, each a value or a function."""
