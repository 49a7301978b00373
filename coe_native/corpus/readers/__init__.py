"""One reader for each format of corpus files."""
