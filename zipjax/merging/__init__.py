"""From assignments to merged parameters: M and U, W* = sum_i M_i W_i U_i, Merged."""
