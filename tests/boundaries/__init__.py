"""Boundaries that cross rooms: secrets that stay where they are, parameters that anybody may write."""
