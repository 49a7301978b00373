"""coe-native: domain specialists from quantised mixture-of-experts GGUF files.

Profile which experts a kind of text needs, mask the others, write a smaller model, verify and judge it. The public
names are listed in ``__init__.pyi``. They are imported when they are used, so that ``import coe_native`` and
``coe-native --help`` do not wait for llama.cpp.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
