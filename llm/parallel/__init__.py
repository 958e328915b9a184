"""Several devices: the mesh, what lies where on it, several processes."""
