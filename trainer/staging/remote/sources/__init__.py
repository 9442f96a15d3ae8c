"""Sources of remote rows. Each source is one file that defines its rows in SQL.

A source is a function that returns a `plan.Table`: a query over the user's files (duckdb, out of core) with the columns
position BIGINT, key VARCHAR, image VARCHAR, texts VARCHAR[], label VARCHAR, cause VARCHAR ('' or why the row is lost).
Triplet sources return the rows themselves: the largest has 20,000.
"""
