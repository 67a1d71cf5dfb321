"""Image decoding and fetching, and the originals of labelled images."""
