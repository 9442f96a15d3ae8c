"""Data that lies elsewhere: plan → fetch → seal, for lists of millions of URLs and on many machines.

`stage plan` turns a list into slices of rows (parquet), `stage fetch --slice i/n` makes the shards of every n-th slice,
`stage seal` checks that all are there and writes the manifest, `stage refetch` plans a second try for what was lost.
Each may be killed and run again: the bytes that come out are those of an undisturbed run.
"""
