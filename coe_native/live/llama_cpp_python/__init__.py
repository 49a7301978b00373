"""Code that depends on the internals of llama-cpp-python: replaced functions, subclasses and private attributes.

Nothing else in coe_native uses any of them.
"""

CHECKED_VERSION = "0.3.36"
"""The release of llama-cpp-python against which all of this was checked, and which a test compares."""
