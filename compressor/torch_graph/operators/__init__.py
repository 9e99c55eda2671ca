"""The kernels, one file per operator family; `KERNELS` at the end of each file is its part of the table."""
