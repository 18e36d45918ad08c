"""Where the compiled library lies. It knows nothing of Python: `shoal.model.kernels.cpu` calls it through ctypes."""

from pathlib import Path

LIBRARY = Path(__file__).with_name("kernels.lib")
