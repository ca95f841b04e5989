"""Pure vocabulary shared by all layers: sums, the tree, layouts, random streams, errors. NumPy only."""
