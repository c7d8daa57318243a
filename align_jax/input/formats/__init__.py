"""The file formats of training datasets, one module each."""
