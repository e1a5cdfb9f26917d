"""Studies: each paper's comparison, reproduced from data to table."""
