"""Potentials on disk: our own format, and the import of published files. No file is ever half written."""
