"""Where compiled programs are kept from one start of a command to the next."""

from pathlib import Path


def enable_compilation_cache(folder: str) -> None:
    """Keeps what takes more than half a second to compile in `folder`; nothing for an empty one."""
    import jax

    if folder:
        jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
