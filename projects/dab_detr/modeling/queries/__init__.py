"""Query formulations: what the decoder's queries are, a file each."""
