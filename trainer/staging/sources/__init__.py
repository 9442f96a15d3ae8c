"""The layouts that can be staged. Each source is one file: it finds the rows of a folder, and never opens a picture.

A pairs source is `read(folder, files) -> Rows`, chosen by the folder's contents; a triplets source is
`read(folder, files, min_votes) -> Rows`. `listing` lists a folder's files and computes its fingerprint.
"""
