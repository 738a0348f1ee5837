"""Commands: the only place with flags. Each module is a thin shell around `rap_jax`."""
