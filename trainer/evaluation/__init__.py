"""How a model is measured: zero-shot classification, retrieval both ways, and 2AFC on triplets.

`evaluate` decides what is missing without torch, `measure` runs a model over the sets, `zero_shot`,
`retrieval` and `two_afc` hold the metrics as pure functions, `read_sets` the readers, `results` the
files that are written, `sets` the table of the sets that the field reports.
"""
