# The release of llama-cpp-python, and so of llama.cpp, that coe-native is written and tested against.
# pyproject.toml names the same one, for the build and at run time; a test compares the two.
set(COE_LLAMA_CPP_PYTHON_REQUIREMENT "llama-cpp-python==0.3.36")
