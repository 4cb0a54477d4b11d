"""Matrix products with packed weights: the reference in numpy and, where they were built, kernels for the CPU."""
