"""Where objects come from: files, read once or followed live."""
