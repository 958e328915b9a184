"""Records, packing and generated data."""
