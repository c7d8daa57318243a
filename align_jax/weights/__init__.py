"""Reading and writing of weights, in our format and in those of other codebases."""
