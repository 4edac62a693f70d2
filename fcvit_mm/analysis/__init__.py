"""What a model costs, how fast it is, what it sees, and what its logs say."""
