"""Formulas of segmentation quality."""
