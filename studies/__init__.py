"""What the five methods learn: each paper's comparison, repeated from data to table."""
