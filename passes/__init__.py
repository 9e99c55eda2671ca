"""The passes, one file each; the file name is the pass name."""
