"""Masks as polygons, run lengths and regions. Pure."""
