"""Images: decoding, fetching, and the originals of labelled ones."""
