"""Every file in this folder is one paper's merge rules; importing the package registers them all.

What several papers share stands in spectra.py, coefficients.py and matching.py.
"""

import importlib
import pkgutil

for module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{module.name}")
