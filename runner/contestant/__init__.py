"""The contestant's side of the boundary; imports nothing of the judge."""
