"""Query formulations, which define the decoder's queries; one file each."""
