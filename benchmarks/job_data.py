"""Prepares the data of `benchmarks.main_job`, outside the time that is measured.

    python -m benchmarks.job_data OUT.npz DATASET DATA_DIR [RAW_DATA_DIR]

It leaves the prepared copy that `launch.main` reads in DATA_DIR, and the same three splits in OUT.npz for PyTorch. A
program of its own, so that `main_job` stays small: a process inherits its parent's memory peak.
"""

import sys

import numpy as np

from rap_jax.config import DataConfig
from rap_jax.data import load_dataset


def main(out: str, dataset: str, data_dir: str, raw_data_dir: str | None = None) -> None:
    """Writes `{train,validation,test}_{images,labels}`: uint8 [N, H, W, C] and int32 [N]."""
    found = load_dataset(DataConfig(dataset, data_dir=data_dir, raw_data_dir=raw_data_dir), seed=0)
    splits = {"train": found.train, "validation": found.validation, "test": found.test}
    np.savez(out, **{f"{name}_{field}": getattr(s, field) for name, s in splits.items() for field in s._fields})


if __name__ == "__main__":
    main(*sys.argv[1:])
