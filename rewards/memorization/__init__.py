"""How much of the private training set a fine-tuned model gives away: one metric a file."""
