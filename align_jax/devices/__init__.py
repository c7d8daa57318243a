"""The mesh, the known accelerators, the runtime and the choice of kernels."""
