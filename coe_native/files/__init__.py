"""Read and write files.

Outputs appear whole or not at all, and do not follow other users' symlinks in shared directories.
"""
