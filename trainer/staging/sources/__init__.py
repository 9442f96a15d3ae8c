"""What can be staged. Each source is one file: it finds the rows of a folder, and never opens a picture.

A pairs source is `read(folder, files) -> Rows` and is told by what the folder holds; a triplets source is
`read(folder, files, min_votes) -> Rows`. `listing` says what is there and `fingerprint` what it is.
"""
