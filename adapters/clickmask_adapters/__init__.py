"""Everything of clickmask that speaks to the outside: labeling tools, the HTTP API, the command line."""
