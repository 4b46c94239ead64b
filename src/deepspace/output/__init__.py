"""Files, tables and pictures; knows nothing of models."""
