"""Several ranks for one job: the layout, the mesh, and what is sharded along its axes."""
