"""Where remote rows come from. Each source is one file that says, in SQL, what its rows are.

A source is a function that returns a `plan.Table`: a query over the user's files (duckdb, out of core) with the columns
position BIGINT, key VARCHAR, image VARCHAR, texts VARCHAR[], label VARCHAR, cause VARCHAR ('' or why the row is lost).
Triplet sources return rows outright: the largest there is has 20,000.
"""
