"""Files: model files, the import of published files, and safe writing. No file is ever half written."""
