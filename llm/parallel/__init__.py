"""Several devices: the mesh, shardings, and several processes."""
