"""Labelled images as a dataset: snapshots, split sides, COCO folders."""
