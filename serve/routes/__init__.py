"""What is answered at which path: a file for each group of routes, and what they share in `answering`."""
