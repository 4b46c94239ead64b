"""Encoders and predictors."""
