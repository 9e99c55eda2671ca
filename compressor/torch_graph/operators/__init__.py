"""The kernels, one file per operator family; each ends with its part of the table, `KERNELS` or `HOST_KERNELS`."""
