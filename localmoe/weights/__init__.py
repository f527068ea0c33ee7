"""Headers only: which tensors are resident, and where each expert's bytes lie."""
