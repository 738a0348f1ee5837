"""The authors' algorithm written anew in PyTorch, for comparison only; needs the extra `bench`."""
