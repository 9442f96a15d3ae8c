"""Converters: a local copy of a set, as its authors ship it, to CLIP_benchmark's layout with our index and manifest.

`copies` defines a converter's input and output; `binary`, `folders`, `lists`, `scenes`, `captions`
and `tars` read the formats, `prompts` the class names and templates, `stage` writes, `cli` is `stage eval`.
"""
