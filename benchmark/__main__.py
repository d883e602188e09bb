"""`python -m benchmark` is `python benchmark/all.py`."""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

sys.path.insert(0, str(HERE))  # the scripts import each other by name
runpy.run_path(str(HERE / "all.py"), run_name="__main__")
