"""Files: atomic writes, bundled resources, downloads."""
