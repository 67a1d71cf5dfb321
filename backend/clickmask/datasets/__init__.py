"""Labelled images as a data set: snapshots, sides of the split, COCO folders."""
