"""What depends on the inside of llama-cpp-python."""
